"""vLLM's scheduler, held to the plan of the kernel's step."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler  # pyright: ignore[reportMissingImports]

from aios_kernel.engine.vllm.inprocess.context import KEY


class PlannedScheduler(Scheduler):  # pyright: ignore[reportUntypedBaseClass]
    """Schedules the requests of `plan`, each by its number of tokens at most; the others stay as they are.

    Attributes:
        plan: tokens by the id of a request.
        restored: ids of requests whose KV comes from the connector alone.
        scheduled: tokens that the last step computed, by the id of a request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan: dict[str, int] = {}
        self.restored: set[str] = set()
        self.scheduled: dict[str, int] = {}

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """A step of vLLM on what the plan names."""
        hidden = [request for request in self.running if request.request_id not in self.plan]
        waiting = [request for request in self.waiting if request.request_id not in self.plan]
        self.running[:] = [request for request in self.running if request.request_id in self.plan]
        self.waiting.remove_requests(waiting)
        self.scheduled = {}
        try:
            output = super().schedule(throttle_prefills)
        finally:
            self.running.extend(hidden)
            for request in waiting:
                self.waiting.add_request(request)
        self.scheduled = dict(output.num_scheduled_tokens)
        for number in self.scheduled:
            request = self.requests[number]
            request.sampling_params.extra_args[KEY].emits = request.num_computed_tokens >= request.num_tokens
        return output

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Where vLLM asks how much of a chunk it may take: what the plan says, less what was found in the cache."""
        found = num_computed_tokens - request.num_computed_tokens
        allowed = max(1, self.plan.get(request.request_id, 0) - (0 if self._is_restored(request) else found))
        return min(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens), allowed)

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        """Nothing for a request whose own KV comes back: what others computed may be rounded otherwise."""
        if self._is_restored(request):
            return self.kv_cache_manager.empty_kv_cache_blocks, 0, 0, False
        return super()._get_local_prefix_cache_hit(request)

    def _is_restored(self, request: Any) -> bool:
        return request.request_id in self.restored
