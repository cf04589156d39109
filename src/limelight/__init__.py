"""limelight: training-free grounding of Hugging Face multimodal LLMs.

generate(model, processor, messages, strategy=lime())   an answer, and where each word came from
transcribe(model, sound="talk.mp3")                      speech of any length to text, with the same information
custom_generate(lime(), ...)                             the same inside model.generate(...)
audit(adapter, rows)                                     which words of finished answers the media support
attribute(model, inputs)                                 relevance of every position for one logit
load("demo-vision"), wrap(model, processor)              an Adapter for a model
"""

from typing import Any

import lazy_loader

from limelight import display

__version__ = "0.1.0"

# The names are listed in __init__.pyi and imported when first used: ``import limelight`` stays light.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _html(value: Any) -> str:
    from limelight.report.notebook import html

    return html(value)


display.use(_html)
