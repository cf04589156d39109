"""Base class of multimodal models built here: a transformers decoder whose placeholders are replaced by media features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel

from limelight.compat import CausalLMOutputWithPast
from limelight.errors import HookError, PromptError, UnsupportedError


class MergedModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Base of a model ``towers -> placeholders -> decoder -> head``.

    A subclass sets ``language_model`` (a transformers decoder), ``lm_head``, ``media`` (the names of its media tensors)
    and ``features(**media)``: ``[n, positions, D]``, in the order of the placeholders.
    """

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    media: tuple[str, ...] = ()
    placeholder = ""

    def features(self, **media: Any) -> Tensor:
        """Compute the media's features ``[n, positions, D]``; raises HookError unless a subclass overrides it."""
        raise HookError(
            f"{type(self).__name__} does not define features() for its media {', '.join(self.media) or '(none named)'}",
            hint="define features(**media), which returns [n, positions, width of the decoder]",
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head  # type: ignore[no-any-return]

    def get_decoder(self) -> nn.Module:
        return self.language_model  # type: ignore[no-any-return]

    def merge(self, input_ids: Tensor, media: dict[str, Any]) -> Tensor:
        """Return token embeddings ``[B, T, D]`` with the features inserted at the placeholders.

        Raises:
            PromptError: placeholders and features differ in number, or there are placeholders and no media.
        """
        where = input_ids == getattr(self.config, self.placeholder)
        embeds: Tensor = self.get_input_embeddings()(input_ids.masked_fill(where, 0))
        first = media.get(self.media[0])
        if first is None:
            if bool(where.any()):
                raise PromptError(
                    f"{int(where.sum())} placeholders and no {self.media[0]}",
                    hint="pass everything that the processor returned",
                )
            return embeds
        found = self.features(**media)
        if found.shape[0] * found.shape[1] != int(where.sum()):
            raise PromptError(
                f"{int(where.sum())} placeholders for {found.shape[0]} media of {found.shape[1]} positions each",
                hint="let the processor write the placeholders",
            )
        return embeds.masked_scatter(where[..., None].expand_as(embeds), found.to(embeds))

    def run(
        self,
        input_ids: Tensor | None,
        media: dict[str, Any],
        *,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Merge the media, run the decoder and compute the logits.

        Raises:
            UnsupportedError: labels were passed (no loss is computed).
        """
        kwargs.pop("return_dict", None)
        if kwargs.pop("labels", None) is not None:
            raise UnsupportedError(
                f"{type(self).__name__} computes no loss", hint="compute it from the logits, shifted by one position"
            )
        if inputs_embeds is None:
            if input_ids is None:
                raise PromptError(
                    "expected input_ids or inputs_embeds, got neither",
                    hint="pass everything that the processor returned",
                )
            inputs_embeds = self.merge(input_ids, media)
        out = self.language_model(inputs_embeds=inputs_embeds, **kwargs)
        hidden = out.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden), past_key_values=out.past_key_values, hidden_states=out.hidden_states,
            attentions=out.attentions,
        )  # fmt: skip

    def prepare_inputs_for_generation(
        self, *args: Any, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):  # the cache already contains the media
            inputs.update(dict.fromkeys(self.media))
        return inputs


def within(model: Any, most: int, why: str) -> None:
    """Make ``model`` raise UnsupportedError for sequences of more than ``most`` positions, including cached ones."""

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        before = cache.get_seq_length() if cache is not None else 0
        if isinstance(embeds, torch.Tensor) and before + embeds.shape[1] > most:
            raise UnsupportedError(
                f"{before + embeds.shape[1]} positions, {why} {most}", hint="use a shorter prompt or fewer new tokens"
            )

    model.register_forward_pre_hook(check, with_kwargs=True)
