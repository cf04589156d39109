"""Forward-mode relevance: Phi_c(v) for every token v at once, without a backward pass.

The LRP-modified gradient is a linear map, so ``sum_i c_i R_i = <c * x, df/dx>`` is the directional derivative of ``f``
along the tangent ``c_i x_i`` (method of this library; AttnLRP's rules in forward mode). Tangents are computed as additional
rows of the batch; the KV cache of those rows is a dual cache, filled at prefill and extended token by token.

Tested properties: ``Phi_c = sum_i c_i R_i`` of the backward pass; decoding token by token equals one prefill.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limelight import compat
from limelight.errors import NotFiniteError, SettingError
from limelight.models.adapter import Adapter
from limelight.models.inputs.decoder_inputs import DECODER
from limelight.models.inputs.ready_masks import Reach
from limelight.models.runtime.capture import DecoderCall, last_hidden
from limelight.relevance.composites import ATTN_LRP, Composite
from limelight.relevance.forward.cache import DualCache, PassingCache
from limelight.relevance.forward.check import reading, require_forward_mode, rotated
from limelight.relevance.forward.rules import JvpRules
from limelight.relevance.forward.static import StaticStep
from limelight.relevance.layers.output_head import adds, plain_head, project, scaled
from limelight.relevance.mode import Mode, Offsets


@dataclass(frozen=True)
class Channel:
    """One tangent direction: weights ``[B, T]`` of the prompt's positions, and one weight for all generated positions."""

    name: str
    prompt: Tensor
    generated: float


def modality_channel(modality: Tensor, mask: Tensor) -> Channel:
    """Return the channel of Phi_M: c = 1 on the media."""
    return Channel("modality", (modality & mask).float(), 0.0)


def text_channel(modality: Tensor, mask: Tensor) -> Channel:
    """Return the channel of Phi_T: c = 1 on the text, generated tokens included."""
    return Channel("text", (mask & ~modality).float(), 1.0)


def contrast_channel(modality: Tensor, mask: Tensor) -> Channel:
    """Return the channel of Phi_M - Phi_T: c = +1 on the media, -1 on the text."""
    return Channel("contrast", (modality & mask).float() - (mask & ~modality).float(), -1.0)


@dataclass(frozen=True)
class DualOutput:
    """Output of a step. ``hidden``: last position's state and tangents ``[1 + C, B, D]``; ``graph``: the mode's graph."""

    hidden: Tensor
    graph: str = "none"


class DualStream:
    """Cached decoding of one prompt batch with C tangent channels.

    Args:
        call: the captured prompt.
        channels: tangent directions (empty: plain cached decoding).
        composite: ATTN_LRP or CP_LRP.
        reserve: positions to reserve in the cache for generated tokens.
        continues: False where nothing will be appended: no layer's keys and values are kept beyond its own work, and
            :meth:`every_position` is all that may be called.

    Raises:
        UnknownKindError, UnsupportedError: a module, an operation or a decoder argument without a forward mode.
    """

    def __init__(
        self,
        adapter: Adapter,
        call: DecoderCall,
        channels: Sequence[Channel],
        composite: Composite = ATTN_LRP,
        reserve: int = 64,
        continues: bool = True,
    ) -> None:
        front = call.front
        self.adapter, self.call, self.channels = adapter, call, tuple(channels)
        self.batch = int(call.embeds.shape[0])
        for channel in channels:
            if channel.prompt.shape != call.mask.shape:
                raise SettingError(
                    f"channel {channel.name!r} has weights {tuple(channel.prompt.shape)}, the prompt {tuple(call.mask.shape)}",
                    hint="one weight per prompt position",
                )
        self.mode = Mode(batch=self.batch)
        kind = DualCache if continues else PassingCache
        self.cache = kind(call.length - front + reserve, reading(adapter, call), paired=adapter.encoder is not None)
        check = partial(require_forward_mode, adapter, call, composite)
        self.rules = JvpRules(
            adapter, self.mode, self.cache, composite, check, rotations=rotated(adapter, call, composite)
        )
        check()
        self.mask = call.mask
        self.embeds = call.embeds[:, -1:]
        self.ready_masks = self._needs_ready_masks()
        plain = () if self.ready_masks else ("attention_mask",)
        self.here = DECODER.last({k: v for k, v in call.kwargs.items() if k not in plain})  # of the current position
        self.padding = call.padding
        if "position_ids" not in self.here and "position_ids" in inspect.signature(adapter.decoder.forward).parameters:
            self.here["position_ids"] = call.mask[:, front:].long().sum(-1, keepdim=True) - 1
        self._next_here()  # raises if an argument's value for a new token is unknown
        config: Any = adapter.decoder.config
        types = set(getattr(config, "layer_types", None) or ())
        windowed = bool(types - {"full_attention"}) or bool(
            getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        )
        own = compat.makes_its_own_mask(adapter.decoder)  # computes its mask itself from [B, T]
        self.full_attention = self.positions is not None and not (windowed or own or self.ready_masks)
        self.simple_mask = self.full_attention and bool(call.mask[:, front:].all())
        self.static = StaticStep(self)

    @property
    def rows(self) -> int:
        return (1 + len(self.channels)) * self.batch

    @property
    def positions(self) -> Tensor | None:
        """Position ids of the current position, if the decoder takes any."""
        return self.here.get("position_ids")

    def _needs_ready_masks(self) -> bool:
        """Return whether prepared masks are given, by layer type or hiding more than the decoder itself would."""
        ready = self.call.kwargs.get("attention_mask")
        if not isinstance(ready, Tensor) or ready.ndim != 4:
            return isinstance(ready, Mapping)
        seen = ready[:, 0, -1] > torch.finfo(ready.dtype).min / 2
        real = self.call.mask[:, self.call.front :].expand(len(seen), -1)
        return not bool(seen[real].all()) or self.call.reaches.get("") != Reach()

    def _next_here(self) -> dict[str, Any]:
        """Return the arguments of a next text token, in place of ``here``."""
        here = DECODER.following(self.here, self.call.reaches, self.padding)
        if self.call.features is None:
            return here
        kept = {k: here.pop(k) for k in self.call.features.kept if k in here}
        return here | self.call.features.of_text(kept)

    def _with_tangents(self, embeds: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Combine ``[B, N, D]`` and C weights ``[B, N]`` to ``[(1 + C) * B, N, D]``."""
        return torch.cat([embeds, *(embeds * w[..., None].to(embeds.dtype) for w in weights)])

    def prefill(self) -> DualOutput:
        """Run the prompt at once, except for a beginning that the adapter's prefix cache has, and fill the cache."""
        known = self.adapter.prefix_cache
        reused = 0 if known is None else known.fill(self)
        out = self._run_prompt(reused)
        self.cache.advance(self.call.length - self.call.front - reused)
        if known is not None:
            known.keep(self)
        return self.output_of(out)

    def every_position(self) -> Tensor:
        """Return states and tangents ``[1 + C, B, T, D]`` of all the prompt's positions, in one forward; no continuation."""
        hidden = last_hidden(self._run_prompt())
        return hidden.to(self.call.embeds.device).reshape(-1, self.batch, *hidden.shape[1:])

    def _run_prompt(self, start: int = 0) -> Any:
        """Run the prompt's positions from ``start`` on, which are not in the cache yet."""
        weights = [c.prompt[:, start:] for c in self.channels]
        call = self.call.tail(self.call.length - start) if start else self.call
        masks = {k: v for k, v in self.call.kwargs.items() if k == "attention_mask"}  # of all positions
        call = replace(call, kwargs={**call.kwargs, **masks})
        rows = replace(call, kwargs=call.repeated(self.rows))
        embeds = self._with_tangents(call.embeds, weights)
        with torch.no_grad(), self.working(rows=self.rows, write=True, weights=weights), self.rules.attached():
            return self.adapter.decoder(past_key_values=self.cache.handed, use_cache=True, **rows.arguments(embeds))

    def append(self, tokens: Tensor) -> None:
        """Set ``tokens`` [B] as the current position (not yet in the cache)."""
        self.embeds = self.adapter.embed(tokens[:, None]).detach()
        if self.call.features is not None:
            self.embeds = self.call.features.widened(self.embeds)
        self.mask = torch.cat([self.mask, self.mask.new_ones(self.batch, 1)], dim=1)
        self.here = self._next_here()

    def reorder(self, rows: Tensor) -> None:
        """Continue row ``i`` from row ``rows[i]`` [B] of the same prompt, in every channel."""
        blocks = torch.arange(1 + len(self.channels), device=rows.device)[:, None] * self.batch
        self.cache.reorder((blocks + rows).flatten())

    def rewind(self) -> None:
        """Make the last prompt position current again, so that its query can be run with offsets."""
        self.cache.rewind(1)

    def current(
        self,
        *,
        graph: str = "none",
        write: bool = True,
        offsets: Offsets | None = None,
        tangents: bool = True,
        tap: Any = None,
    ) -> DualOutput:
        """Run the current position against the cache.

        Args:
            graph: ``none``, ``surrogate`` or ``true`` (see :class:`Mode`).
            write: store its keys and values (call once per token).
            offsets: added to K and V for the current query.
            tangents: False runs block 0 only.
        """
        plainly = graph == "none" and write and tangents and offsets is None and tap is None
        if plainly and self.static.ready():
            return self.static.run()
        first = self.cache.length + 1 == self.call.length - self.call.front
        weights = [
            c.prompt[:, -1:] if first else torch.full((self.batch, 1), c.generated, device=self.embeds.device)
            for c in self.channels
        ]
        embeds = self._with_tangents(self.embeds, weights) if tangents else self.embeds
        rows = int(embeds.shape[0])
        features = self.call.features
        kwargs = DECODER.repeat({k: v for k, v in self.here.items() if k != "attention_mask"}, rows)
        kwargs["attention_mask"] = self._current_mask(rows)
        if features is not None:
            kwargs |= features.spread({k: self.here[k] for k in features.kept if k in self.here}, rows)
        differentiable = graph != "none"
        with (
            torch.set_grad_enabled(differentiable),
            self.working(rows=rows, graph=graph, write=write, weights=weights, offsets=offsets, tap=tap),
            self.rules.attached(),
        ):
            if differentiable:
                embeds = embeds.detach().requires_grad_(True)
            given = {"inputs_embeds": embeds, **kwargs} if features is None else features.step(embeds, kwargs)
            out = self.adapter.decoder(past_key_values=self.cache.handed, use_cache=True, **given)
            output = self.output_of(out, graph)  # inside: a view taken under no_grad would lose its graph
        if write:
            self.cache.advance(1)
        return output

    def _current_mask(self, rows: int) -> Any:
        if self.ready_masks:
            return self.here["attention_mask"]
        if self.simple_mask:
            return self.embeds.new_zeros((1, 1, 1, self.cache.length + 1))
        return self.mask[:, self.call.front :].long().repeat(rows // self.batch, 1)

    def output_of(self, out: Any, graph: str = "none") -> DualOutput:
        hidden = last_hidden(out)
        last = hidden[:, -1].to(self.call.embeds.device)
        return DualOutput(last.reshape(-1, self.batch, hidden.shape[-1]), graph)

    @property
    def generated_weights(self) -> list[float]:
        """Each channel's weight for generated positions."""
        return [c.generated for c in self.channels]

    @contextmanager
    def working(
        self,
        *,
        rows: int,
        write: bool,
        weights: Sequence[Tensor] = (),
        graph: str = "none",
        offsets: Offsets | None = None,
        tap: Any = None,
    ) -> Iterator[None]:
        """Set the mode inside the block. ``weights``: each channel's ``[B, T]``, of the positions that are run."""
        mode = self.mode
        mode.weights = torch.stack(tuple(weights)) if weights and self.rules.composite.positional else None
        mode.channels = rows // self.batch
        mode.graph, mode.write, mode.offsets, mode.tap = graph, write, offsets, tap
        try:
            yield
        finally:
            mode.channels, mode.weights = 1, None
            mode.graph, mode.write, mode.offsets, mode.tap = "none", True, None, None
            mode.trims.clear()
            mode.starts.clear()

    def heads(self, output: DualOutput) -> tuple[Tensor, Tensor]:
        """Compute logits ``[B, V]`` and Phi ``[C, B, V]`` in float32 or wider.

        Raises:
            NotFiniteError: NaN or infinity in either.
        """
        hidden = output.hidden
        head: Any = self.adapter.head
        raw = project(head, hidden)
        raw = raw.to(self.call.embeds.device, torch.promote_types(raw.dtype, torch.float32))
        logits, phi = raw[0], raw[1:]
        if adds(head):  # measure the offset at zero
            phi = phi - head(torch.zeros_like(hidden[:1, :1])).to(raw)
        logits, phi = scaled(self.adapter.head_scalars, logits, phi, output.graph)
        if not (_finite(logits) and _finite(phi)):
            raise NotFiniteError(
                "the logits or their relevance contain NaN or infinity", hint="check weights and dtype; try float32"
            )
        return logits, phi

    def phi_of(self, output: DualOutput, tokens: Tensor) -> Tensor:
        """Compute Phi ``[C, B, k]`` of only the tokens ``[B, k]``, with their rows of the output embedding."""
        head: Any = self.adapter.head
        if self.adapter.head_scalars.cap is not None or not plain_head(head):
            phi = self.heads(output)[1]
            return phi.gather(-1, tokens.expand(phi.shape[0], -1, -1))
        rows = torch.nn.functional.embedding(tokens, head.weight)  # [B, k, D]
        wide = torch.promote_types(output.hidden.dtype, torch.float32)
        out = torch.matmul(rows.to(wide), output.hidden[1:, :, :, None].to(wide))[..., 0]
        return out * self.adapter.head_scalars.scale


def _finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, in one pass and without a tensor of its size."""
    if not values.numel():
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(values.detach()))).all())
