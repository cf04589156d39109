"""``limelight export-custom-generate``: a strategy as a folder for ``model.generate(custom_generate="org/name")``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from limelight.cli import options
from limelight.errors import SettingError

_CODE = '''\
"""{about}

Written by limelight {version}: ``limelight export-custom-generate``.
"""

STRATEGY = {name!r}
SETTINGS = {settings}


def generate(
    model, inputs=None, processor=None, tokenizer=None, streamer=None, stop_strings=None, seed=None, strategy_settings=None,
    parent_model=None, **kwargs
):
    """Decode with {name}. ``strategy_settings``: settings that replace the exported ones. ``processor``: needed by methods with
    a second prompt and for ``stop_strings``; ``seed``, ``parent_model``: see ``limelight.custom_generate``. All other arguments
    are those of ``model.generate``.
    """
    import torch
    from transformers import GenerationMixin

    import limelight

    paired = model.config.is_encoder_decoder
    if inputs is not None:
        kwargs.setdefault(model.main_input_name if paired else "input_ids", inputs)
    # arguments that generate() was not given
    given = {{k: v for k, v in kwargs.items() if v is not None}}
    tensors = {{k: v for k, v in given.items() if isinstance(v, torch.Tensor)}}
    strategy = limelight.strategy(STRATEGY, **{{**SETTINGS, **(strategy_settings or {{}})}})
    method = limelight.custom_generate(
        strategy,
        processor=processor,
        tokenizer=tokenizer,
        streamer=streamer,
        stop_strings=stop_strings,
        seed=seed,
        tensors=tensors if paired or "input_ids" in tensors else None,
        parent_model=parent_model,
    )
    if paired:  # Whisper's own generate() would cut the sound into windows a second time
        return GenerationMixin.generate(model, custom_generate=method, **given)
    return model.generate(custom_generate=method, **given)
'''

_README = """\
---
library_name: transformers
tags:
- custom_generate
- limelight
license: apache-2.0
---

# {name}

{about}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(MODEL)
model = AutoModelForImageTextToText.from_pretrained(MODEL)
inputs = processor(text=..., images=..., return_tensors="pt")
output = model.generate(
    **inputs, custom_generate="ORG/NAME", trust_remote_code=True, processor=processor, max_new_tokens=64
)
```

Works with the models that [limelight](https://github.com/limelight) supports, unchanged. Requires `{requirement}`.

## Settings

{table}

They are replaced by `strategy_settings={{...}}` in the call. Further arguments: `processor` (for methods with a second prompt, and
for `stop_strings`), `seed` (sampling), `parent_model` (where generate() is called on an inner model).
"""


def export_custom_generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must not exist, or be empty.")],
    strategy: options.StrategyName = "relevance-contrastive",
    settings: options.Settings = None,
) -> None:
    """Write a decoding strategy as a folder for the Hub.

    After `huggingface-cli upload ORG/NAME DIR`, everyone can use it as
    `model.generate(**inputs, custom_generate="ORG/NAME", trust_remote_code=True)`; a local folder works too. The folder has
    `custom_generate/generate.py`, which imports limelight, `custom_generate/requirements.txt`, which pins its version, and a README
    with the tag `custom_generate`.

    **Examples**

        limelight export-custom-generate my-method --strategy relevance-contrastive --set alpha=2
    """
    write(folder, strategy, settings or [])
    typer.echo(f"{folder}: model.generate(**inputs, custom_generate={str(folder)!r}, trust_remote_code=True)")


def write(folder: Path, name: str, pairs: list[str]) -> None:
    """Write the folder.

    Raises:
        SettingError: unknown strategy or setting, or a folder that is not empty.
    """
    import limelight

    made = options.strategy_of(name, pairs)
    name = name.partition(",")[0]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder} exists and is not empty", hint="choose another folder, or remove it")
    given: dict[str, Any] = dict(made.settings())
    told = _told(name)
    requirement = f"limelight=={limelight.__version__}"
    table = "\n".join(["| setting | value |", "| --- | --- |", *(f"| `{k}` | `{v!r}` |" for k, v in given.items())])
    fields = {"name": name, "about": told, "version": limelight.__version__, "requirement": requirement}
    code = folder / "custom_generate"
    code.mkdir(parents=True, exist_ok=True)
    (code / "generate.py").write_text(_CODE.format(settings=_literal(given), **fields), encoding="utf-8")
    (code / "requirements.txt").write_text(requirement + "\n", encoding="utf-8")
    (folder / "README.md").write_text(
        _README.format(table=table if given else "It has none.", **fields), encoding="utf-8"
    )


def _told(name: str) -> str:
    from limelight.cli.strategies import first_paragraph
    from limelight.decoding.registry import strategies

    return first_paragraph(strategies()[name])


def _literal(settings: dict[str, Any]) -> str:
    """Settings as Python source; only values that are read back the same."""
    from limelight.cli.options import literal

    for key, value in settings.items():
        again = literal(repr(value)) if not isinstance(value, str) else value
        if again != value and list(again or ()) != list(value or ()):
            raise SettingError(f"the setting {key}={value!r} cannot be written to a file", hint="use its default")
    return json.dumps(settings) if not settings else "{" + ", ".join(f"{k!r}: {v!r}" for k, v in settings.items()) + "}"
