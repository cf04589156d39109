"""limelight: training-free grounding of Hugging Face multimodal LLMs.

generate(model, processor, messages, strategy=lime())   an answer, and where each word came from
transcribe(model, sound="talk.mp3")                      speech of any length to text, likewise
custom_generate(lime(), ...)                             the same inside model.generate(...)
attribute(model, inputs)                                 relevance of every position for one logit
load("demo-vision"), wrap(model, processor)              a model becomes an Adapter
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Adapter": "models.adapter",
    "Generation": "types",
    "LimelightError": "errors",
    "Relevance": "types",
    "Step": "types",
    "attribute": "relevance.attribute",
    "attribute_generated": "relevance.attribute",
    "after": "decoding.after",
    "attached": "relevance.attachment",
    "custom_generate": "decoding.loop",
    "generate": "decoding.generate",
    "generate_many": "decoding.generate",
    "greedy": "decoding.methods.greedy",
    "lime": "decoding.methods.lime",
    "lime_cached": "decoding.methods.lime_cached",
    "load": "models.loading",
    "meter": "decoding.methods.meter",
    "relevance_contrastive": "decoding.methods.relevance_contrastive",
    "strategy": "decoding.registry",
    "transcribe": "decoding.transcribe",
    "wrap": "models.adapter",
}

if TYPE_CHECKING:
    from limelight.decoding.after import after
    from limelight.decoding.generate import generate, generate_many
    from limelight.decoding.loop import custom_generate
    from limelight.decoding.methods.greedy import greedy
    from limelight.decoding.methods.lime import lime
    from limelight.decoding.methods.lime_cached import lime_cached
    from limelight.decoding.methods.meter import meter
    from limelight.decoding.methods.relevance_contrastive import relevance_contrastive
    from limelight.decoding.registry import strategy
    from limelight.decoding.transcribe import transcribe
    from limelight.errors import LimelightError
    from limelight.models.adapter import Adapter, wrap
    from limelight.models.loading import load
    from limelight.relevance.attachment import attached
    from limelight.relevance.attribute import attribute, attribute_generated
    from limelight.types import Generation, Relevance, Step

__all__ = [
    "Adapter",
    "Generation",
    "LimelightError",
    "Relevance",
    "Step",
    "after",
    "attached",
    "attribute",
    "attribute_generated",
    "custom_generate",
    "generate",
    "generate_many",
    "greedy",
    "lime",
    "lime_cached",
    "load",
    "meter",
    "relevance_contrastive",
    "strategy",
    "transcribe",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Names are imported when first used: ``import limelight`` stays light."""
    if name in _WHERE:
        value = getattr(importlib.import_module(f"limelight.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'limelight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
