"""A model behind any OpenAI-compatible server: the scheduler decides who is admitted, the server does the rest.

Codec and engine belong together, as in `engine.fake`: a prompt's tokens stand for a whole call, a token of the answer
for a piece of it as the server sent it.
"""

from aios_kernel.engine.openai.load import openai_model

__all__ = ["openai_model"]
