"""Loading: a shipped miniature, a checkpoint folder, a name of the Hub, or a family's own layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from limelight.errors import ModelError, NotFiniteError
from limelight.models.adapter import Adapter
from limelight.models.checkpoints.formats import config_of
from limelight.models.families import families

PACKAGED = {"demo-vision": "demo/vision", "demo-audio": "demo/audio"}


def packaged(name: str) -> Path:
    """Folder of a model that ships with the library.

    Raises:
        ModelError: there is none of that name.
    """
    root = Path(__file__).resolve().parents[1]
    folder = root / PACKAGED.get(name, "")
    if name not in PACKAGED or not (folder / "config.json").is_file():
        have = [n for n, p in PACKAGED.items() if (root / p / "config.json").is_file()]
        raise ModelError(f"no shipped model {name!r}", hint=f"shipped models: {', '.join(have) or 'none'}")
    return folder


def load(
    name: str | Path, *, dtype: torch.dtype | str = "auto", device: str | None = None, trust_remote_code: bool = False
) -> Adapter:
    """Load a shipped miniature (``demo-vision``), a local checkpoint folder, or a name of the Hub.

    Raises:
        ModelError: the folder holds no model, or no multimodal generation class fits its config.
        NotFiniteError: a floating-point weight is NaN or infinite.
    """
    from transformers import AutoConfig

    from limelight.media.video_tensors import load_processor

    source = packaged(str(name)) if str(name) in PACKAGED else name
    found = _published(source, dtype)
    if found is not None:
        return _ready(*found, device)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot load a model from {str(name)!r}: {str(error).splitlines()[0]}",
            hint=f"give a folder with config.json, a Hub name, or one of {', '.join(PACKAGED)}",
        ) from error
    cls = _model_class(config)
    model = cls.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code)
    try:
        processor = load_processor(source, config.model_type, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{str(name)!r} has a model but no usable processor: {str(error).splitlines()[0]}",
            hint="a multimodal model needs preprocessor_config.json and tokenizer files beside its weights",
        ) from error
    return _ready(model, processor, device)


def _ready(model: Any, processor: Any, device: str | None) -> Adapter:
    model.eval()
    if device is not None:
        model.to(device)
    check_finite(model)
    return Adapter(model, processor)


def _published(source: str | Path, dtype: torch.dtype | str) -> tuple[Any, Any] | None:
    """Model and processor of a checkpoint in a family's own layout, or None."""
    folder = Path(source)
    ways = [f.published for f in families().values() if f.published is not None]
    if folder.is_dir():
        config = config_of(folder)
        return next((w.load(folder, dtype) for w in ways if w.claims(folder, config)), None)
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError, KeyError):
        return None  # the ordinary way says what is wrong
    way = next((w for w in ways if w.claims(None, config)), None)
    if way is None:
        return None
    from huggingface_hub import snapshot_download

    kept = ["*.json", "*.safetensors", "*.bin", "*.tiktoken", "*.model"]
    return way.load(Path(snapshot_download(str(source), allow_patterns=kept)), dtype)


def _model_class(config: Any) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto as auto

    for table in ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"):
        name = getattr(auto, table, {}).get(config.model_type)
        if name:
            return getattr(transformers, name[0] if isinstance(name, (tuple, list)) else name)
    for name in getattr(config, "architectures", None) or ():
        cls = getattr(transformers, name, None)
        if cls is not None and hasattr(cls, "generate"):
            return cls
    raise ModelError(
        f"no multimodal generation class in transformers for model type {config.model_type!r}",
        hint="load the model yourself and pass it to limelight.wrap(model, processor)",
    )


def check_finite(model: nn.Module) -> None:
    """Raise NotFiniteError, naming the parameter, when a weight is NaN or infinite."""
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":  # offloaded: whoever uses it says so
            continue
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise NotFiniteError(
                f"the weight {name} holds NaN or infinity",
                hint="the checkpoint is damaged or was cast to a type that is too small; load it again with another dtype",
            )
