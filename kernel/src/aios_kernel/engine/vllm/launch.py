"""Runs vLLM's server in its own environment; it ends when standard input does, so it never outlives the kernel.

Imports the standard library only: there is no kernel in that environment.
"""

import os
import runpy
import signal
import threading
import time

_GRACE_S = 20.0


def _end_with_the_kernel() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":  # the processes that it starts import this file again
    threading.Thread(target=_end_with_the_kernel, daemon=True).start()
    # Not `vllm serve`: that wants a distribution of the name `vllm`, which the CPU build is not.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
