"""Facts about model families that are not in their configs, one file per family, found by listing this folder.

A family file ends in ``FAMILY = Family(...)``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor

from limelight.models.checkpoints.formats import Convertible, Published
from limelight.models.inputs.axes import Axes
from limelight.models.spans import Pictures


@dataclass(frozen=True)
class PaperSettings:
    """A row of the paper's settings table (arXiv 2605.01766): Adam learning rate, KL weight, temperature, steps.

    ``markers``: the authors' span includes the start and end markers around the media.
    """

    lr: float = 3e-4
    kl_weight: float = 0.1
    tau: float = 0.1
    steps: int = 7
    markers: bool = False


@dataclass(frozen=True)
class Family:
    """Facts about a family beyond its config.

    Attributes:
        model_types: values of ``config.model_type`` that it covers; ``model_type/type of the vision encoder`` to restrict
            them to one encoder.
        paper: its row of the paper's table (the paper's defaults if it has none).
        members: adds media positions besides the placeholders: ``(input_ids, modality ids) -> modality ids``.
        pictures: lays out one run of image or video positions (:data:`limelight.models.spans.Pictures`).
        transcribe: the prompt for a transcription, if neither config nor processor contains one.
        extra_inputs: inputs that forward needs and a caller may have omitted: ``(model, inputs) -> tensors to add``.
        seconds: duration of one audio input's positions, if it does not follow from the features: ``config -> seconds``.
        state_seconds: duration of one encoder state of an encoder-decoder: ``config -> seconds``.
        decoder_prompt: start ids of an encoder-decoder's decoder: ``(adapter, words, the encoder's tensors) -> ids``.
        answer_prefix: text before an encoder-decoder's answer that is stripped from it.
        transcription: prompt of an encoder-decoder for a transcription: ``(adapter, prompt, language) -> words``.
        published: how to load checkpoints in a layout that transformers cannot read.
        whole_last: an image's tile grid precedes its overview and is cropped at the upper left (Phi-4); else the grid
            follows the overview and is cropped around its centre (LLaVA-NeXT).
        marked: there is no placeholder token; a mask beside the ids marks the media positions.
        arguments: axes of the model's arguments that differ from :data:`limelight.models.inputs.decoder_inputs.MODEL`.
        no_batch: why several prompts cannot share a batch. ``no_padding``: why prompts of different lengths cannot.
    """

    name: str
    model_types: tuple[str, ...]
    paper: PaperSettings = field(default_factory=PaperSettings)
    members: Callable[[Tensor, Tensor], Tensor] | None = None
    pictures: Pictures | None = None
    extra_inputs: Callable[[Any, Mapping[str, Any]], dict[str, Any]] | None = None
    transcribe: str = "Transcribe the speech."
    seconds: Callable[[Any], float] | None = None
    state_seconds: Callable[[Any], float] | None = None
    decoder_prompt: Callable[[Any, str, Mapping[str, Any]], list[int]] | None = None
    answer_prefix: str = ""
    transcription: Callable[[Any, str | None, str | None], str] | None = None
    published: Published | Convertible | None = None
    marked: bool = False
    whole_last: bool = False
    arguments: Mapping[str, tuple[Axes, ...]] = field(default_factory=dict)
    no_batch: str = ""
    no_padding: str = ""


GENERIC = Family("generic", ())


@cache
def families() -> dict[str, Family]:
    """Map model_type to Family, from every file of this folder."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
        found.update(dict.fromkeys(family.model_types, family))
    return found


def family_of(config: Any) -> Family:
    """Return the family of a config; ``GENERIC``, which relies on detection alone, if there is no file for it."""
    kind = str(getattr(config, "model_type", ""))
    tower = getattr(getattr(config, "vision_config", None), "model_type", "")
    known = families()
    return known.get(f"{kind}/{tower}") or known.get(kind) or GENERIC
