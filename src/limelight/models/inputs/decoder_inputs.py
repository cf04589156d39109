"""Declared axes of every argument of decoders and whole models, in one table each.

:data:`DECODER` describes the arguments of the inner language model (a captured call), :data:`MODEL` those of the whole
model (a generate() call, a processor's tensors). All code that extends, cuts, repeats or reorders a prompt uses them; an
undeclared argument with tensors raises an error with its name, and is never guessed.

To add an argument, add its row: its possible layouts (:mod:`limelight.models.inputs.axes`), distinguished by their number
of axes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight import compat
from limelight.errors import UnsupportedError
from limelight.models.inputs.axes import FULL, Axes
from limelight.models.inputs.ready_masks import Reach, reach_of

Reaches = Mapping[str, Reach]

TYPES = (Axes("row position", "zero"),)  # generated or inserted tokens are text
MARKS = (Axes("row position", "zero", media=True), Axes("row position one", "zero", media=True))
READY = Axes("row head position key", "causal")
MASK = (Axes("row position", "one"), READY)
POSITIONS = (Axes("position", "next"), Axes("row position", "next"), Axes("axis row position", "next"))
STATES = Axes("row head position state", "same", media=True)
FEATURES = (Axes("placed feature", features=True, media=True),)
BY_LAYER_TYPE = "attention_mask"  # may be a mapping, layer type -> mask

DECODER_ARGUMENTS: dict[str, tuple[Axes, ...]] = {
    "input_ids": (Axes("row position"),),
    "inputs_embeds": (Axes("row position feature"),),
    "ple_input_ids": (Axes("row position"),),
    "attention_mask": MASK,
    "position_ids": POSITIONS,
    "cache_position": (Axes("position", "next"),),
    "token_type_ids": TYPES,
    "mm_token_type_ids": TYPES,
    "moe_mm_token_type_ids": TYPES,
    # media positions, and features that enter besides the embeddings
    "visual_pos_masks": MARKS,
    "vision_mask": MARKS,
    "deepstack_visual_embeds": FEATURES,
    "deepstack_features": FEATURES,
    "per_layer_inputs": (Axes("row position layer feature", "zero", features=True),),
    "image_embeds_position_mask": MARKS,
    "image_embeds": (*FEATURES, Axes("picture placed feature", features=True, media=True)),
    "cross_attention_states": (Axes("picture state feature", features=True, media=True),),
    "cross_attention_mask": (STATES,),
    "encoder_hidden_states": (Axes("row state feature", features=True, media=True),),
    "encoder_attention_mask": (Axes("row state", "same", media=True), STATES),
    "full_text_row_masked_out_mask": (STATES,),
}

_PICTURES = (Axes("picture *", media=True),)  # images, clips and audio of all rows, concatenated
_PIXELS = (Axes("picture *", media=True, features=True),)
_CONTAINER = (Axes("*"),)  # not a tensor: a cache, or the media encoded by transformers

MODEL_ARGUMENTS: dict[str, tuple[Axes, ...]] = {
    **{k: DECODER_ARGUMENTS[k] for k in (
        "input_ids", "inputs_embeds", "position_ids", "cache_position", "token_type_ids",
        "mm_token_type_ids", "moe_mm_token_type_ids", "image_embeds_position_mask", "visual_pos_masks",
        "full_text_row_masked_out_mask",
    )},
    "modality_ids": TYPES,
    "attention_mask": (MASK[0], Axes(READY.layout)),  # a prepared mask is the caller's: its continuation is unknown
    "past_key_values": _CONTAINER,
    "encoder_outputs": _CONTAINER,
    compat.ENCODED_MEDIA: (Axes("*", media=True),),
    "cross_attention_mask": (Axes("row position picture tile", "same", media=True),),
    "image_attention_mask": (Axes("row position picture", "same", media=True), Axes("picture tile height width", media=True)),
    "cross_attention_states": _PIXELS,
    "image_embeds": _PIXELS,
    "per_layer_inputs": (Axes("row position layer feature"),),
    "rope_deltas": (Axes("row one", media=True),),
    "qformer_input_ids": _PICTURES,
    "qformer_attention_mask": _PICTURES,
    "fbank": _PIXELS,
    "fbank_mask": _PICTURES,
    "padding_mask": _PICTURES,
    "flattened_patches": _PIXELS,
    "patches_grid": _PICTURES,
    "second_per_grid_ts": _PICTURES,
    "video_second_per_grid": _PICTURES,
    "spatial_shapes": _PICTURES,
    "target_sizes": _PICTURES,
    "target_sizes_videos": _PICTURES,
    "aspect_ratio_ids": (Axes("row picture", media=True),),
    "aspect_ratio_mask": (Axes("row picture tile", media=True),),
    "batch_num_images": _PICTURES,
    "images_per_sample": _PICTURES,
    "chunk_sample_lengths": _PICTURES,
    "image_token_pooling": (Axes("picture *", media=True, indexes="pixel_values"),),
    "video_token_pooling": (Axes("picture *", media=True, indexes="pixel_values_videos"),),
    "feature_attention_mask": _PICTURES,
    "image_encoder_embeddings": _PIXELS,
    "perceiver_embeddings": _PIXELS,
    "video_compression_mask": _PICTURES,
    "height": _PICTURES,
    "width": _PICTURES,
    "tile_fine_mask": _PICTURES,
    "audio_input_ids": _PIXELS,
    "audio_input_ids_mask": _PICTURES,
}  # fmt: skip

# Families name pixels and audio similarly; arguments with position ids are listed above, or refused.
_CONTENTS = re.compile(
    r"(high_res_)?(image_|video_)?pixel_values(_\w+)?|(audio_)?input_(features|values)|audio_(values|features)"
    r"|(image|video)_patches"
)
_DESCRIPTIONS = re.compile(
    r"(high_res_)?(image_|video_)?pixel_(mask|attention_mask)(_\w+)?|(audio_)?input_(features|values)_mask"
    r"|audio_(embed_sizes|feature_lengths|lengths|attention_mask)|num_(?!logits)\w+"
    r"|(image|video)_(grid_thw|grid_hw|grids|sizes|sizes_videos|merge_sizes|num_crops|position_ids)"
)


def holds_tensors(value: Any) -> bool:
    """Return whether the value contains tensors, also nested in containers."""
    if isinstance(value, Mapping):
        return any(map(holds_tensors, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_tensors, value))
    return isinstance(value, Tensor)


class Arguments:
    """The arguments of one callee, by name, and the operations on all of a call's arguments at once.

    Every operation takes a mapping of arguments and returns a new one. Flags, None, and values without tensors are
    unchanged.

    Args:
        owner: the callee's name, for messages.
        rows: argument -> its layouts, which differ in their number of axes.
        further: name -> layouts of arguments that are not in ``rows``, or None if unknown.
    """

    def __init__(
        self,
        owner: str,
        rows: Mapping[str, tuple[Axes, ...]],
        further: Callable[[str], tuple[Axes, ...] | None] = lambda name: None,
    ) -> None:
        self.owner, self.rows, self.further = owner, rows, further

    def replaced(self, rows: Mapping[str, tuple[Axes, ...]]) -> Arguments:
        """Return a table in which ``rows`` replace or extend those of this one."""
        return Arguments(self.owner, {**self.rows, **rows}, self.further) if rows else self

    def declared(self, name: str) -> tuple[Axes, ...] | None:
        """Return the layouts of an argument, or None."""
        return self.rows[name] if name in self.rows else self.further(name)

    def __contains__(self, name: str) -> bool:
        return self.declared(name) is not None

    def axes(self, name: str, value: Any) -> Axes:
        """Return the axes of an argument's value.

        Raises:
            UnsupportedError: the argument is not declared, or not with this number of axes.
        """
        known = self.declared(name)
        if known is None:
            raise UnsupportedError(
                f"the axes of the {self.owner}'s argument {name!r} {_shape(value)} are not declared",
                hint=f"plain decoding (greedy) needs no declaration; otherwise add {name!r} to "
                "limelight/models/inputs/decoder_inputs.py",
            )
        for axes in known:
            if "*" in axes.names or (isinstance(value, Tensor) and value.ndim == len(axes.names)):
                return axes
        raise UnsupportedError(
            f"expected the {self.owner}'s argument {name!r} to have the axes "
            f"{' or '.join(f'[{a.layout}]' for a in known)}, got {_shape(value)}",
            hint="add the layout to limelight/models/inputs/decoder_inputs.py",
        )

    def undeclared(self, arguments: Mapping[str, Any], taken: Collection[str] = ()) -> tuple[str, ...]:
        """Return the undeclared arguments with tensors; those that the callee names must be in its own table."""
        return tuple(
            k for k, v in arguments.items() if holds_tensors(v) and k not in (self.rows if k in taken else self)
        )

    def each(self, arguments: Mapping[str, Any], change: Callable[[Axes, Tensor, str], Any]) -> dict[str, Any]:
        """Apply ``change(axes, tensor, layer type)`` to every tensor; the layer type is "" except for masks by layer type."""

        def named(name: str, value: Any, kind: str) -> Any:
            axes = self.axes(name, value)
            try:
                return change(axes, value, kind) if isinstance(value, Tensor) else value
            except UnsupportedError as error:
                raise UnsupportedError(
                    f"the {self.owner}'s argument {name!r}: {error.message}", hint=error.hint
                ) from error

        def of(name: str, value: Any) -> Any:
            if not holds_tensors(value):
                return value
            if name == BY_LAYER_TYPE and isinstance(value, Mapping):
                return {k: named(name, v, k) if holds_tensors(v) else v for k, v in value.items()}
            return named(name, value, "")

        return {name: of(name, value) for name, value in arguments.items()}

    def append(self, arguments: Mapping[str, Any], count: int = 1, reaches: Reaches | None = None) -> dict[str, Any]:
        """Append ``count`` text tokens to every row.

        Args:
            reaches: layer type -> reach of its attention, for prepared masks ("": the only mask).
        """
        return self.each(
            arguments, lambda axes, value, kind: axes.append(value, count, _reach(axes, value, kind, reaches, count))
        )

    def last(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the last position's values; of masks, the whole row."""
        return self.each(arguments, lambda axes, value, _: axes.last(value))

    def following(
        self, last: Mapping[str, Any], reaches: Reaches | None = None, padding: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the values for a new text token, given those of the ``last`` position. ``padding`` [B]: left padding,
        after which chunks are counted."""

        def further(axes: Axes, value: Tensor, kind: str) -> Tensor:
            if kind and axes.keys is None:
                raise UnsupportedError(
                    f"a mask of layer type {kind!r} with the axes [{axes.layout}] has no last row to continue from",
                    hint="pass the attention mask as [batch, positions], so that the model builds its masks itself",
                )
            return axes.following(value, _reach(axes, value, kind, reaches, 1), padding)

        return self.each(last, further)

    def tail(self, arguments: Mapping[str, Any], count: int) -> dict[str, Any]:
        """Keep only the last ``count`` positions."""
        return self.each(arguments, lambda axes, value, _: axes.tail(value, count))

    def row(self, arguments: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Select one row of the batch, including padding."""
        return self.each(arguments, lambda axes, value, _: axes.row(value, index))

    def repeat(self, arguments: Mapping[str, Any], rows: int) -> dict[str, Any]:
        """Tile the batch to ``rows`` rows."""
        return self.each(arguments, lambda axes, value, _: axes.repeat(value, rows))

    def reorder(self, arguments: Mapping[str, Any], index: Tensor) -> dict[str, Any]:
        """Select the rows ``index``, in this order and with repetitions."""
        return self.each(arguments, lambda axes, value, _: axes.reorder(value, index))

    def insert(self, arguments: Mapping[str, Any], at: Sequence[int], count: int) -> dict[str, Any]:
        """Insert ``count`` text tokens before position ``at[r]`` of every row ``r``."""
        return self.each(arguments, lambda axes, value, _: axes.insert(value, at, count))

    def drop(self, arguments: Mapping[str, Any], keep: Tensor, mask: Tensor) -> dict[str, Any]:
        """Keep only the positions ``keep`` [B, T] among the real ones ``mask`` [B, T]; rows are left-padded again."""
        return self.each(arguments, lambda axes, value, _: axes.drop(value, keep, mask))

    def without_media(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that do not belong to the media."""
        return {k: v for k, v in arguments.items() if not self.is_media(k, v)}

    def is_features(self, name: str) -> bool:
        """Return whether an argument is declared to contain features."""
        return any(axes.features for axes in self.declared(name) or ())

    def marks_media(self, name: str, value: Any) -> bool:
        """Return whether an argument is a boolean mask of media positions."""
        if name not in self or not isinstance(value, Tensor) or value.dtype != torch.bool:
            return False
        axes = self.axes(name, value)
        return axes.media and axes.new == "zero"

    def is_media(self, name: str, value: Any) -> bool:
        """Return whether an argument belongs to the media."""
        return (name in self or holds_tensors(value)) and self.axes(name, value).media


def _reach(axes: Axes, mask: Tensor, kind: str, reaches: Reaches | None, count: int) -> Reach:
    if axes.keys is None or axes.new != "causal" or reaches is None:
        return FULL
    return reach_of(kind, mask.shape[axes.keys] + count, reaches)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"({type(value).__name__})"


def _media(name: str) -> tuple[Axes, ...] | None:
    if _CONTENTS.fullmatch(name):
        return _PIXELS
    return _PICTURES if _DESCRIPTIONS.fullmatch(name) else None


def _passed_on(name: str) -> tuple[Axes, ...] | None:
    """Layouts of media descriptions that models pass on to decoders which ignore them."""
    return _PICTURES if MODEL.declared(name) == _PICTURES else None


MODEL = Arguments("model", MODEL_ARGUMENTS, _media)
# Of an encoder-decoder the plain names are the encoder's.
ENCODER_DECODER_ARGUMENTS: dict[str, tuple[Axes, ...]] = {
    "decoder_input_ids": MODEL_ARGUMENTS["input_ids"],
    "decoder_attention_mask": MODEL_ARGUMENTS["attention_mask"],
    "decoder_position_ids": MODEL_ARGUMENTS["position_ids"],
    "decoder_inputs_embeds": MODEL_ARGUMENTS["inputs_embeds"],
    "attention_mask": (Axes("row frame", media=True), Axes("row frame width", media=True)),
    "past_key_values": _CONTAINER,
    "encoder_outputs": (Axes("*", media=True),),
}

DECODER = Arguments("decoder", DECODER_ARGUMENTS, _passed_on)
MODEL_ENCODER_DECODER = Arguments("model", ENCODER_DECODER_ARGUMENTS, _media)
