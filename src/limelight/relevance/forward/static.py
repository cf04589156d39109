"""The plain step of a dual stream with fixed shapes, captured as a CUDA graph.

On a GPU one token's step consists of a few thousand small kernels, and launching them one by one from the CPU takes ten
times as long as running them. With fixed shapes (the cache is read up to a window, and a mask hides unused positions) the
step is captured once and replayed. The results equal those of the ordinary step up to the order of summation.

Only the plain step is captured: values and tangents of one position, written to the cache, without gradients. Decoders
with sliding windows, recurrent layers, features beside the embeddings, or parts on several devices use the ordinary step,
as do the first few tokens of every stream.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limelight import compat
from limelight.errors import HookError
from limelight.models.inputs.decoder_inputs import holds_tensors
from limelight.models.runtime.capture import last_hidden

if TYPE_CHECKING:
    from limelight.relevance.forward.stream import DualOutput, DualStream

AFTER = 3  # ordinary steps before a capture, which costs about as much as two steps
WINDOW = 256  # positions by which the window grows; each growth requires a new capture


class StaticStep:
    """Runs fixed-shape steps of one :class:`DualStream`. ``graphs=False`` runs them uncaptured (for tests, on any device)."""

    def __init__(self, stream: DualStream, *, graphs: bool | None = None) -> None:
        self._stream = weakref.ref(
            stream
        )  # the stream owns this step: no reference cycle, so its caches are freed with it
        on_gpu = stream.call.embeds.device.type == "cuda"
        self.graphs = on_gpu if graphs is None else graphs
        self.wanted = on_gpu if graphs is None else True
        self.after = AFTER
        self.steps = 0
        self.window = 0
        self.graph: Any = None
        self.hidden: Tensor | None = None
        self._possible: bool | None = None

    @property
    def stream(self) -> DualStream:
        found = self._stream()
        if found is None:
            raise HookError(
                "the dual stream of this step has been freed", hint="keep a reference to the stream while running steps"
            )
        return found

    def ready(self) -> bool:
        """Count a token and return whether it is run with fixed shapes."""
        prompt = self.stream.call.length - self.stream.call.front
        if not self.wanted or self.stream.cache.length < prompt:  # prompt positions have individual weights
            return False
        self.steps += 1
        if self.steps <= self.after:
            return False
        if not self.stream.rules.current:  # the captured graph would run modules that were replaced
            self.graph, self.hidden, self._possible = None, None, None
        if self._possible is None:
            self._possible = self._can()
        return self._possible

    def _can(self) -> bool:
        stream, call = self.stream, self.stream.call
        if call.features is not None or stream.ready_masks or not stream.full_attention:
            return False
        if stream.cache.states or stream.positions is None:
            return False
        if any(holds_tensors(v) for k, v in call.kwargs.items() if k not in ("attention_mask", "position_ids")):
            return False
        device = call.embeds.device
        modules = stream.rules.table.modules
        own = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
        return all(t.device == device for t in own) and all(compat.accelerate_hook(m) is None for m in modules)

    def run(self) -> DualOutput:
        """Run the current position; its keys and values are in the cache afterwards."""
        stream, cache = self.stream, self.stream.cache
        needed = cache.length + 1
        if needed > self.window:
            self._grow(needed)
        self._fill(needed)
        if self.graph is not None:
            self.graph.replay()
        elif self.graphs:
            self._capture()
        else:
            self.hidden = self._forward()
        cache.advance(1)
        if self.hidden is None:
            raise HookError(
                "a captured step returned no hidden states",
                hint="please report this; DualStream.static.wanted = False avoids it",
            )
        hidden = self.hidden.clone()
        return stream.output_of((hidden,))

    def _grow(self, needed: int) -> None:
        """Allocate buffers for the next window; the cache's buffers are kept, and enlarged where they are smaller."""
        stream, cache = self.stream, self.stream.cache
        self.window = -(-needed // WINDOW) * WINDOW
        cache.enlarge(self.window)
        cache.clear_behind()
        self.graph, self.hidden = None, None
        rows, like = stream.rows, stream.embeds
        self.embeds = like.new_zeros((rows, 1, like.shape[-1]))
        shape = (*stream.positions.shape[:-2], rows, 1) if stream.positions is not None else ()
        self.positions = torch.zeros(shape, dtype=torch.long, device=like.device)
        low = torch.finfo(like.dtype).min
        self.mask = like.new_full((1 if stream.simple_mask else stream.batch, 1, 1, self.window), low)
        seen = stream.mask[: self.mask.shape[0], None, None, stream.call.front :]
        self.mask[..., :needed] = torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, low)
        self.weights = [like.new_full((stream.batch, 1), w) for w in stream.generated_weights]
        self.slot = torch.zeros(1, dtype=torch.long, device=like.device)

    def _fill(self, needed: int) -> None:
        stream = self.stream
        weights = [1.0, *stream.generated_weights]
        b = stream.batch
        for c, weight in enumerate(weights):
            self.embeds[c * b : (c + 1) * b] = stream.embeds * weight
        if stream.positions is not None:
            repeat = [1] * (stream.positions.ndim - 2) + [len(weights), 1]
            self.positions.copy_(stream.positions.repeat(repeat))
        self.mask[..., needed - 1 : needed] = 0
        self.slot.fill_(needed - 1)

    def _forward(self) -> Tensor:
        """Hidden states ``[rows, 1, D]``."""
        stream = self.stream
        with (
            torch.no_grad(),
            stream.working(rows=stream.rows, write=True, weights=self.weights),
            stream.cache.static(self.slot, self.window),
            stream.rules.attached(),
        ):
            out = stream.adapter.decoder(
                inputs_embeds=self.embeds,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=stream.cache,
                use_cache=True,
                **{k: v for k, v in stream.call.kwargs.items() if k not in ("attention_mask", "position_ids")},
            )
        return last_hidden(out)

    def _capture(self) -> None:
        """Run once outside the graph, on a separate CUDA stream as required, then capture and replay."""
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.hidden = self._forward()
        graph.replay()
        self.graph = graph
