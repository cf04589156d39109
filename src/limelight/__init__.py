"""limelight: training-free grounding of Hugging Face multimodal LLMs.

compare(model, processor, messages, strategies=[...])    several answers, and what decides between them
generate(model, processor, messages, strategy=lime())   an answer, and where each word came from
transcribe(model, audio="talk.mp3")                      speech of any length to text, with the same information
custom_generate(lime(), ...)                             the same inside model.generate(...)
audit(adapter, rows)                                     which words of finished answers the media support
attribute(model, inputs)                                 relevance of every position for one logit
load("demo-vision"), wrap(model, processor)              an Adapter for a model
"""

import importlib
from typing import Any

import lazy_loader

from limelight import display

__version__ = "0.1.0"

# The names are listed in __init__.pyi and imported when first used: ``import limelight`` stays light.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _view(module: str, name: str) -> Any:
    """A view of results that imports its module when first called."""

    def made(*given: Any, **settings: Any) -> Any:
        return getattr(importlib.import_module(f"limelight.report.{module}"), name)(*given, **settings)

    return made


display.use(
    html=_view("notebook", "html"),
    text=_view("words", "line"),
    plot=_view("plot", "plot"),
    document=_view("document", "to_dict"),
    table=_view("document", "to_pandas"),
    page=_view("page", "save_result"),
)
