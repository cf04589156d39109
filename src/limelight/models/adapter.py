"""The Adapter around a Hugging Face multimodal model: uniform access to its decoder, head, placeholders and processor."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from limelight.calibration import Calibration
from limelight.errors import HookError, ModelError, NotFiniteError, PromptError, UnsupportedError
from limelight.models import detect, prompts
from limelight.models.families import Family, family_of
from limelight.models.inputs.decoder_inputs import MODEL, MODEL_ENCODER_DECODER, Arguments
from limelight.models.inputs.encoder_decoder import DECODER_ONLY, ENCODER_DECODER, EncoderDecoder, find_encoder_decoder
from limelight.models.inputs.kinds import embedders
from limelight.models.inputs.media_vocabulary import vocabulary_size
from limelight.models.inputs.position_mask import PLACES
from limelight.models.inputs.ready_masks import reaches
from limelight.models.inputs.side_features import Embedder
from limelight.models.runtime.attention import no_attention_hooks, switched
from limelight.models.runtime.capture import DecoderCall, capture, last_hidden
from limelight.models.runtime.locks import lock_of
from limelight.models.runtime.module_table import ModuleTable
from limelight.models.runtime.offload import device_of
from limelight.models.runtime.wrappers import uncompiled, unwrapped
from limelight.models.spans import grown, layouts
from limelight.types import MODALITIES, Inputs, Modality, Prompt, Span


class Adapter:
    """A model and its processor, with uniform access to the parts that the library needs.

    Attributes:
        model, processor: as given (the processor may be None for tensor-only use); unwrapped from peft and torch.compile,
            with adapters still active.
        decoder: the module with the text decoder's layers.
        traits: layers, heads, kv heads, head dim, hidden size, vocabulary.
        family: facts beyond the config.
        prefix_cache: a :class:`limelight.PrefixCache`, so that prompts with the same beginning share its prefill (None: off).
        calibration: of the grounding flag, if one was found for this model (None: the default threshold is used).
        parent_model: the multimodal model; different from ``model`` if that is the inner language model, to which some
            families' ``generate()`` delegates (BLIP-2, InstructBLIP).

    A text-only model has no placeholders: all of its prompts are text. Of an encoder-decoder (``encoder``) the prompt is
    the decoder's ids, all text, and media stand beside them.

    Raises:
        ModelError: ``model`` is not a model.
        HookError: no decoder, or the model has no output embedding.
    """

    def __init__(self, model: Any, processor: Any = None, parent_model: Any = None) -> None:
        model = unwrapped(model)
        self.model: Any = model
        self.parent_model: Any = model if parent_model is None else unwrapped(parent_model)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"expected a transformers model, got {type(model).__name__}",
                hint="limelight.load(name or folder) loads one; limelight.wrap(model, processor) takes a loaded one",
            )
        self.processor = processor
        self.calibration: Calibration | None = None
        self.prefix_cache: Any = None
        self._inside = False
        self._table: Callable[[], ModuleTable | None] = lambda: None
        self.charted: OrderedDict[Any, Any] = OrderedDict()  # see models.regions
        self.decoder: Any = detect.find_decoder(model)
        self.traits = detect.decoder_traits(model, self.decoder)
        self.family: Family = family_of(self.parent_model.config)
        self.encoder: EncoderDecoder | None = find_encoder_decoder(
            self.parent_model, self.decoder, self.family.state_seconds
        )
        self.names = DECODER_ONLY if self.encoder is None else ENCODER_DECODER
        arguments = MODEL if self.encoder is None else MODEL_ENCODER_DECODER
        self.arguments: Arguments = arguments.replaced(self.family.arguments)
        unmarked = self.family.marked or self.encoder is not None
        self.placeholders = {} if unmarked else detect.placeholder_ids(self.parent_model, processor)
        head = self.model.get_output_embeddings()
        if head is None:
            inner = [m for m in model.modules() if m is not model and getattr(m, "lm_head", None) is not None]
            head = inner[0].lm_head if inner else None
        if not isinstance(head, nn.Module):
            raise HookError(
                f"{type(model).__name__} has no output embedding", hint="pass a generation model with an lm_head"
            )
        self.head: nn.Module = head
        with self.exclusive():
            self.head_scalars = detect.head_scalars(model, self.decoder, head, self.placeholders)

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes that identify the model a calibration belongs to."""
        return {"layers": self.traits.layers, "hidden": self.traits.hidden, "vocabulary": self.traits.vocab}

    @cached_property
    def known_tokens(self) -> int | None:
        """See :func:`limelight.models.detect.known_tokens`."""
        return detect.known_tokens(self.tokenizer)

    @cached_property
    def attention_layers(self) -> dict[int, nn.Module]:
        """layer_idx -> attention module."""
        return detect.attention_modules(self.decoder)

    def attending(self, seen: set[int]) -> set[int]:
        """Return the layers whose attention must have run, given that ``seen`` did: a decoder with cross-attention skips
        all cross-attention layers for a prompt without images."""
        if self.encoder is not None:
            return set(self.attention_layers)
        cross = {i for i, m in self.attention_layers.items() if m in self._cross_attention}
        return set(self.attention_layers) - (set() if seen & cross else cross)

    @cached_property
    def _cross_attention(self) -> set[nn.Module]:
        return {m for n, m in self.decoder.named_modules() if n.endswith(detect.CROSS_ATTENTION)}

    @property
    def device(self) -> torch.device:
        """The device for token ids: the input embedding's (``model.device`` may be ``meta`` when offloaded)."""
        return device_of(self.word_table)

    @property
    def word_table(self) -> Any:
        """The embedding of token ids."""
        return (self.model if self.encoder is None else self.decoder).get_input_embeddings()

    def table(self) -> ModuleTable:
        """Return the table of the model's current modules. Keep a reference: the adapter only has a weak one."""
        table = self._table()
        if table is None:
            table = ModuleTable(self.model, self.decoder, self.head)
            self._table = ref(table)
        else:
            table.refresh()
        return table

    @contextmanager
    def listed(self) -> Iterator[ModuleTable]:
        """List the model's modules once for the whole block, and again only if one is replaced. Not exclusive."""
        with self.exclusive():
            table = self.table()
        yield table

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Give this thread exclusive use of the model, with uncompiled modules, inside the block; may be nested."""
        with lock_of(self.decoder):
            if self._inside:  # this thread holds the lock, so this is a nested block
                yield
                return
            self._inside = True
            try:
                table = self.table()
                with uncompiled(self.model, table.everything):
                    yield
            finally:
                self._inside = False

    @contextmanager
    def routed(self) -> Iterator[None]:
        """Route the text decoder's attention through limelight's function inside the block (exclusive)."""
        with self.exclusive(), switched(self.decoder, self.table().configs()):
            yield

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Disable parameter gradients inside the block, so that a graph saves no activations for unused weight gradients
        (exclusive: another thread's exit would re-enable them)."""
        with self.exclusive():
            asking = [p for p in self.table().parameters() if p.requires_grad and not p.is_inference()]
            try:
                for parameter in asking:
                    parameter.requires_grad_(False)
                yield
            finally:
                for parameter in asking:
                    parameter.requires_grad_(True)

    def complete(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Validate the inputs and add those that the model needs and the caller may have omitted.

        Raises:
            PromptError: no input ids, an empty prompt, or ids that the model does not have; see also ``Family.extra_inputs``.
        """
        out = dict(inputs) if self.encoder is None else self.encoder.complete(inputs, self.device)
        ids = out.get(self.names.ids)
        if isinstance(ids, Tensor):
            detect.check_ids(ids, self.names.ids, self._vocabulary_size, self.placeholders)
        if self._takes_types and out.get("mm_token_type_ids") is None and isinstance(ids, Tensor):
            # without them, positions (M-RoPE) and masks would silently be those of plain text
            out["mm_token_type_ids"] = detect.modality_ids(self.parent_model, {"input_ids": ids}, self.processor)
        if self.family.extra_inputs is not None:
            out.update(self.family.extra_inputs(self.model, out))
        return out

    @cached_property
    def _vocabulary_size(self) -> int | None:
        return vocabulary_size(self.model, self.word_table)

    @cached_property
    def _takes_types(self) -> bool:
        return "mm_token_type_ids" in inspect.signature(type(self.model).forward).parameters

    def modality_ids(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return int64 ``[B, T]``: the index into ``MODALITIES`` of each position. A row without media is all text.

        Raises:
            PromptError: there are media, but no row has a position for them.
        """
        ids = self._modalities(inputs)
        if (
            self.encoder is None
            and not bool(ids.any())
            and inputs.get("modality_ids") is None
            and (found := detect.media_tensors(inputs))
        ):
            raise PromptError(
                f"no row has an image, audio or video position, although there are {', '.join(found)} "
                f"(placeholders: {self.placeholder_names()})",
                hint="put the media into the messages, or the model's placeholder token into the text",
            )
        return ids

    @property
    def modalities(self) -> frozenset[Modality]:
        """The kinds of media that the model takes."""
        return frozenset(self.placeholders.values()) | ({self.encoder.kind} if self.encoder is not None else set())

    def placeholder_names(self) -> str:
        if self.family.marked:
            return f"where {PLACES} is not 0"
        return ", ".join(f"{m} = {i}" for i, m in sorted(self.placeholders.items())) or "none"

    def _modalities(self, inputs: Mapping[str, Any]) -> Tensor:
        if self.encoder is not None:  # media stand beside the prompt, which is all text
            return torch.zeros_like(self.complete(inputs)[self.names.ids])
        given = any(inputs.get(k) is not None for k in ("modality_ids", "mm_token_type_ids"))
        known = given or self.placeholders or self.family.marked or not isinstance(inputs.get("input_ids"), Tensor)
        # an inner language model may receive its parent's own mask, which does not show how it is used
        if not known and (found := detect.media_tensors(inputs)):
            raise detect.nameless(self.parent_model, found)
        ids = detect.modality_ids(self.parent_model, inputs, self.processor)
        tokens = inputs.get("input_ids")
        if self.family.members is None or inputs.get("modality_ids") is not None or tokens is None:
            return ids
        return self.family.members(tokens, ids)

    def spans(self, inputs: Mapping[str, Any], row: int = 0, *, length: int | None = None) -> tuple[Span, ...]:
        """Return the spans of one row, a partition of its positions; ``length`` extends the last with generated text.

        Raises:
            PromptError: see ``modality_ids``.
        """
        if isinstance(inputs, Inputs) and inputs.spans and row == 0:
            return grown(inputs.spans, length or 0)
        ids = self.modality_ids(inputs)
        queries = None if self.resampler is None or self.resampler[1] else self.resampler[0]
        rows = layouts(ids, self.parent_model.config, inputs, self._seconds(inputs), self.family.pictures, queries)
        return grown(rows[row], length or 0)

    @cached_property
    def resampler(self) -> tuple[int, bool] | None:
        """See :func:`limelight.models.detect.learned_queries`."""
        return detect.learned_queries(self.parent_model, self.decoder)

    def _seconds(self, inputs: Mapping[str, Any]) -> list[float]:
        """Return the seconds of each audio input (or window), from log-mel features ``[n, bins, frames]`` and their mask."""
        features = inputs.get("input_features")
        if self.family.seconds is not None and isinstance(features, Tensor):
            return [self.family.seconds(self.parent_model.config)] * int(features.shape[0])
        audio = getattr(self.parent_model.config, "audio_config", None)
        bins = getattr(audio, "num_mel_bins", None)
        if not isinstance(features, Tensor) or features.ndim != 3 or features.shape[1] != bins:
            return []
        extractor = getattr(self.processor, "feature_extractor", None)
        rate, hop = getattr(extractor, "sampling_rate", 16000), getattr(extractor, "hop_length", 160)
        for name in ("feature_attention_mask", "input_features_mask"):
            mask = inputs.get(name)
            if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == features.shape[2]:
                return [float(n) * hop / rate for n in mask.sum(dim=-1).tolist()]
        return [features.shape[2] * hop / rate] * int(features.shape[0])

    def capture(self, inputs: Mapping[str, Any]) -> DecoderCall:
        """Run the encoders once and return the decoder's inputs.

        Raises:
            NotFiniteError: a merged embedding is NaN or infinite.
            PromptError, NotMultimodalError: see ``modality_ids``.
            UnsupportedError: the decoder receives an argument whose axes are not declared, or features without a position;
                or the model is in training mode, in which dropout randomises results and batch norms change.
        """
        if self.model.training:
            raise UnsupportedError("the model is in training mode (dropout is active)", hint="call model.eval()")
        if self.encoder is not None and self.encoder.scale is None:
            raise UnsupportedError(
                f"{type(self.decoder).__name__} takes token ids alone, and relevance needs a decoder that takes embeddings",
                hint="only plain decoding (greedy) works on this family",
            )
        if self.encoder is None and isinstance(inputs.get("input_ids"), Tensor) and inputs["input_ids"].ndim == 2:
            self.modality_ids(inputs)  # report media without positions before the model fails on them
        given = {k: v for k, v in self.complete(inputs).items() if k != "modality_ids"}
        if given.get(self.names.embeds) is not None:  # already merged; the ids only determine modalities
            given.pop(self.names.ids, None)
        if self.encoder is not None:
            given = self.encoder.encoded(self.model, given)
        with self.routed(), no_attention_hooks():  # hooks must not act on encoders inside the decoder
            known = reaches(self.decoder.config)
            call = capture(self.model, self.decoder, given, known, lambda: self._modalities(inputs) > 0,
                           self.names, self._words_of)  # fmt: skip
            if self.encoder is not None:
                call = call.with_encoder(self.encoder, given)
        if not bool(torch.isfinite(call.embeds).all()):
            raise NotFiniteError(
                "the merged embeddings contain NaN or infinity",
                hint="check the checkpoint's weights and the media; in float16 try bfloat16 or float32",
            )
        return call

    def hidden(self, call: DecoderCall, embeds: Tensor | None = None) -> Tensor:
        """Run the decoder without a cache and return the last hidden states ``[B, T, D]`` (after the final norm), with
        zeros at positions before the prompt's own."""
        with self.routed():
            out = self.decoder(use_cache=False, **call.arguments(embeds))
        hidden = last_hidden(out)
        if not isinstance(hidden, Tensor):
            raise HookError(f"the decoder returned {type(hidden).__name__}, expected hidden states", hint="report this")
        hidden = hidden.to(call.embeds.device)
        return torch.nn.functional.pad(hidden, (0, 0, call.front, 0)) if call.front else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of hidden states, with the family's scale and soft-cap."""
        return self.head_scalars(self.head(hidden).to(hidden.device))

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input embeddings ``[B, n, D]`` of token ids as the decoder receives them, followed by the tokens' side
        features (:mod:`limelight.models.inputs.side_features`)."""
        out: Tensor = self._words_of(ids)
        for embedded in self._embedders:
            out = embedded(ids, out)
        return out.to(ids.device)

    def _words_of(self, ids: Tensor) -> Tensor:
        """Rows of the word table, as the decoder scales them."""
        out: Tensor = self.word_table(ids)
        scale = 1.0 if self.encoder is None else self.encoder.scale or 1.0
        return out if scale == 1.0 else out * scale

    @cached_property
    def _embedders(self) -> tuple[Embedder, ...]:
        return embedders(self.parent_model, self.decoder)

    def tokens(self, ids: Tensor | Sequence[int]) -> tuple[str, ...]:
        """Return the text of each id of one row (the id in brackets without a tokenizer)."""
        values = [int(i) for i in ids]
        if self.tokenizer is None:
            return tuple(f"<{i}>" for i in values)
        return tuple(str(self.tokenizer.decode([i])) for i in values)

    def prepare(
        self,
        messages: Sequence[Mapping[str, Any]] | Mapping[str, Any] | str,
        media: Any = None,
        *,
        regions: bool = True,
        long_audio: bool = False,
    ) -> Prompt:
        """Convert messages (Hugging Face chat format, media as objects or files) to one row of tensors; ``regions``: with
        the part of the originals that each span covers. See :func:`limelight.models.prompts.prepare`."""
        return prompts.prepare(self, messages, media, regions=regions, long_audio=long_audio)

    def words(self, inputs: Mapping[str, Any], row: int = 0) -> tuple[str, ...]:
        """Return the token texts of one row's prompt, with placeholders replaced by their modality."""
        ids = inputs[self.names.ids][row]
        kinds = self._modalities(inputs)[row]
        words = self.tokens(ids)
        return tuple(w if int(k) == 0 else f"<{MODALITIES[int(k)]}>" for w, k in zip(words, kinds, strict=True))

    def __repr__(self) -> str:
        t = self.traits
        return (
            f"Adapter({type(self.model).__name__}, family={self.family.name!r}, layers={t.layers}, heads={t.heads}, "
            f"kv_heads={t.kv_heads}, head_dim={t.head_dim}, placeholders={{{self.placeholder_names()}}})"
        )


def wrap(model: Any, processor: Any = None) -> Adapter:
    """Return an Adapter of a loaded model (an Adapter is returned unchanged)."""
    return model if isinstance(model, Adapter) else Adapter(model, processor)
