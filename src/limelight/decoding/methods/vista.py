"""VISTA: every layer is steered from the prompt without its image towards the prompt with it; early layers join the logits.

Source: Li et al., "The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via Visual Information
Steering", ICML 2025 (arXiv 2502.03628); formulas and settings as in the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from limelight.decoding.contrast_inputs import media_mask, refuse_encoder_decoder, without
from limelight.decoding.contrastive import check_range, first_and_last
from limelight.decoding.instruments import (
    LogitLens,
    check_layers,
    decoder_layers,
    in_proportion,
    mlp_of,
    post_hook,
    tensor_of,
)  # fmt: skip
from limelight.decoding.intervention import InterventionSession, wide
from limelight.decoding.strategy import Capabilities, GenerationContext, Method, StepOutput
from limelight.decoding.streams import second_stream
from limelight.models.runtime.cached_decoder import Stream

PUBLISHED = (26, 31)  # of 32 layers, both included, counted as LogitLens does: the outputs of layers 25 to 30 from 0


@dataclass(frozen=True)
class Vista(Method):
    """``x <- |x| (x/|x| + y) / |x/|x| + y|`` on every layer's MLP output x; logits ``(1 - alpha) l + alpha mean l_m``.

    ``y = strength (1 + max(0, cos(x, -v))) v/|v|``, ``v`` the layer's output at the prompt's last position, with the media
    minus without them (two prefills of the unchanged model). All positions are steered, the prompt's included. ``l_m`` are
    the logits of late layers without the final norm.

    Args:
        strength: of the steering (the paper's lambda); 0 steers nothing.
        alpha: share of the earlier layers' logits, in [0, 1]; 0 mixes none. With both 0 it is the unchanged model.
        layers: first and last layer of the mix (0 is the embedding, i the output of the i-th layer); None: 26 to 31 of
            LLaVA-7B's 32, in proportion for other depths.

    Differs from the paper: the mix has six layers, as in the released code (the paper: five).
    Differs from the released code (LLaVA-1.5, MiniGPT-4, Shikra, InstructBLIP; batch 1): any family and modality, batches
    (a direction per row); the model is left as it was (there MLPs are replaced by pairs). There the direction passes
    through a PCA of this one difference: its components are the singular vectors of a zero matrix, which add 1 to the
    first coordinate of the first layer's direction by accident; here it is the difference itself. Its scripts pass
    strength 0.17 for captions, as here, and 0.01 for yes/no questions. With ``alpha > 0`` the cache of the answer is still
    the steered model's.
    """

    name = "vista"
    capabilities = Capabilities(batches=True, second_prompt=True, beams=True)

    strength: float = 0.17
    alpha: float = 0.3
    layers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_range(
            "vista", "strength", self.strength, 0.0, hint="the released scripts: 0.17 for captions, 0.01 for yes/no"
        )
        check_range("vista", "alpha", self.alpha, 0.0, 1.0, hint="the released scripts: 0.3")
        object.__setattr__(self, "layers", first_and_last("vista", self.layers, hint="the paper: (26, 31)"))

    def session(self, context: GenerationContext) -> VistaSession:
        """Raises SettingError on layers that the model does not have, HookError on layers without an MLP."""
        return VistaSession(self, context)


class VistaSession(InterventionSession):
    def __init__(self, strategy: Vista, context: GenerationContext) -> None:
        context.require_prompt()
        if strategy.strength > 0:
            refuse_encoder_decoder(context, "a prompt without its media", "an encoder-decoder always reads some")
        super().__init__(context, "vista", recompute=True)
        self.strategy, adapter = strategy, context.adapter
        depth = len(decoder_layers(adapter))
        first, last = strategy.layers or in_proportion(PUBLISHED, depth)
        check_layers(adapter, range(first, last + 1), "vista")
        self.lens = LogitLens(adapter, range(first, last + 1), normed=False)
        self.mlps = [mlp_of(adapter, i) for i in range(depth)] if strategy.strength > 0 else []
        self.directions: list[Tensor] = []

    def acts(self) -> bool:
        return self.strategy.strength > 0 or self.strategy.alpha > 0

    def changed(self, *, prefill: bool) -> AbstractContextManager[Any]:
        if prefill and self.mlps:
            blind = without(self.context, media_mask(self.context))
            self.directions = [
                a - b for a, b in zip(self._ends(second_stream(self.context)), self._ends(blind), strict=True)
            ]
        return self._steering()

    def next(self, tokens: Tensor | None) -> StepOutput:
        output = super().next(tokens)
        if self.strategy.alpha == 0:
            return output
        early = self.lens.logits().mean(0).to(output.logits.dtype)
        return StepOutput((1 - self.strategy.alpha) * output.logits + self.strategy.alpha * early, output.details)

    def _ends(self, stream: Stream) -> list[Tensor]:
        """Return every layer's output ``[B, D]`` at the prompt's last position."""
        found: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def fn(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                found[layer] = wide(tensor_of(output)[:, -1])

            return fn

        with ExitStack() as hooks:
            for i, layer in enumerate(decoder_layers(self.context.adapter)):
                hooks.enter_context(post_hook(layer, keep(i)))
            stream.next(None)
        return [found[i] for i in sorted(found)]

    @contextmanager
    def _steering(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for i, mlp in enumerate(self.mlps):
                hooks.enter_context(post_hook(mlp, partial(self._steer, i)))
            if self.strategy.alpha > 0:
                hooks.enter_context(self.lens.recording())
            yield

    def _steer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        out = output[0] if isinstance(output, tuple) else output
        shaped = out.view(x.shape)  # experts may return [B * T, D]
        turned = steered(wide(shaped), self.directions[layer].to(out.device), self.strategy.strength)
        turned = turned.to(out.dtype).view(out.shape)
        return (turned, *output[1:]) if isinstance(output, tuple) else turned


def steered(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    """Turn ``x`` [B, T, D] towards ``direction`` [B, D], its norm kept; more where it points away."""
    v = direction[:, None].to(x)
    away = 1 + cosine_similarity(x, -v, dim=-1).clamp_min(0)[..., None]
    turned = normalize(x, dim=-1) + strength * away * normalize(v, dim=-1)
    out: Tensor = normalize(turned, dim=-1) * x.norm(dim=-1, keepdim=True)
    return out


vista = Vista
STRATEGIES = {"vista": Vista}
