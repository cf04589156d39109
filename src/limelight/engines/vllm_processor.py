"""The logits processor of vLLM: entry point ``vllm.logits_processors``. See docs/deployments.md.

One class implements both of vLLM's interfaces: that of the V1 model runner (``vllm.v1.sample.logits_processor``), and that of
Model Runner V2 (``vllm.v1.worker.gpu.sample.logits_processor``), where that exists. It leaves every request alone that does not
have the library's extra arguments (:mod:`limelight.engines.requests`).
"""

from __future__ import annotations

import atexit
import logging
from typing import TYPE_CHECKING, Any

from limelight.engines.contrast import At, Contrast, chunked
from limelight.engines.requests import asked, check_sampling

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("limelight.vllm")


def _bases() -> tuple[type, ...]:
    from vllm.v1.sample.logits_processor import LogitsProcessor

    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as OfRunnerV2
    except ImportError:
        return (LogitsProcessor,)
    return (LogitsProcessor, OfRunnerV2)


class LimelightProcessor(*_bases()):  # type: ignore[misc]
    """FLB on single requests, VCD, ICD, M3ID and AAD on pairs of requests.

    Attributes:
        contrast: the state; ``contrast.counts`` says how many requests decoded as ``flb``, ``paired``, ``alone`` (no partner at
            the first token) and ``parted`` (the partner ended before). They are logged when the engine stops.
    """

    def __init__(self, vllm_config: Any, second: Any = None, is_pin_memory: bool = False) -> None:
        """``second``: the device (V1 runner), or the state of the requests (V2)."""
        self.contrast = Contrast()
        self._states = second if hasattr(second, "total_len") else None
        scheduler = getattr(vllm_config, "scheduler_config", None)
        splits = bool(
            getattr(scheduler, "enable_chunked_prefill", getattr(scheduler, "chunked_prefill_enabled", False))
        )
        self._budget = int(getattr(scheduler, "max_num_batched_tokens", 0) or 0) if splits else 0
        self._outputs: dict[int, list[int]] = {}  # V1: index in the batch -> tokens generated so far, updated by vLLM
        self._unsure: set[int] = set()  # V1: requests whose prompt may not be whole yet
        atexit.register(self._tell)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise ``ValueError`` for wrong extra arguments, which vLLM returns to the client."""
        asked(getattr(sampling_params, "extra_args", None))
        check_sampling(sampling_params)

    def is_argmax_invariant(self) -> bool:
        return False

    def needs_output_token_ids(self) -> bool:
        return True

    # V1: requests are rows of a batch, which are added, removed and moved

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: removed, then added, then moved requests."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._forget(index)
        prompts = []
        for index, params, prompt, output in batch_update.added:
            self.contrast.add(index, asked(getattr(params, "extra_args", None)))
            self._outputs[index] = output
            self._unsure.discard(index)
            prompts.append(len(prompt or ()))
        running = batch_update.batch_size - len(prompts)
        if self._budget and chunked(prompts, running, self._budget):
            self._unsure |= {index for index, *_ in batch_update.added}
        for a, b, direction in batch_update.moved:
            self._move(a, b, swap=direction.name == "SWAP")

    def _forget(self, index: int) -> None:
        self.contrast.add(index, None)
        self._outputs.pop(index, None)
        self._unsure.discard(index)

    def _move(self, a: int, b: int, *, swap: bool) -> None:
        tables: tuple[dict[int, Any], ...] = (self.contrast.rows, self._outputs)
        for table in tables:
            one, other = table.pop(a, None), table.pop(b, None)
            for index, value in ((b, one), (a, other if swap else None)):
                if value is not None:
                    table[index] = value
        was = {i for i in (a, b) if i in self._unsure}
        self._unsure -= {a, b}
        self._unsure |= {b} if a in was else set()
        self._unsure |= {a} if swap and b in was else set()

    # V2: requests keep a slot; rows are reordered every step

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Set a slot's request; return whether the processor changes its logits."""
        found = asked(getattr(sampling_params, "extra_args", None))
        self.contrast.add(req_idx, found)
        return found is not None

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Change the logits ``[N, V]`` in place, and return them."""
        if not self.contrast.rows:
            return logits
        places = self._places_v1(len(logits)) if ctx is None else self._places_v2(ctx)
        return self.contrast.apply(logits, places)

    def _places_v1(self, n: int) -> dict[int, At]:
        places = {}
        for index in self.contrast.rows:
            if index >= n:
                continue
            count = len(self._outputs.get(index, ()))
            # the first of a pair's tokens is combined only where no prompt can have been split
            places[index] = At(index, count, ready=bool(count) or index not in self._unsure)
        return places

    def _places_v2(self, ctx: Any) -> dict[int, At]:
        slots, positions = ctx.expanded_idx_mapping.tolist(), ctx.pos.tolist()
        prompts = self._states.prompt_len.np if self._states is not None else {}
        places: dict[int, At] = {}
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            count = int(position) + 1 - int(prompts[slot])
            # with speculative decoding a request has several rows: it is left alone
            places[slot] = At(row, max(count, 0), ready=count >= 0 and slots.count(slot) == 1)
        return places

    def _tell(self) -> None:
        if any(self.contrast.counts.values()):
            log.info("requests: %s", ", ".join(f"{v} {k}" for k, v in self.contrast.counts.items()))
