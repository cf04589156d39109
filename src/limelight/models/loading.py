"""Loading a shipped miniature, a checkpoint folder, a Hub name, or a checkpoint in a family's own layout."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limelight.calibration import AUTO, NONE, Calibration, check_fits, find_calibration, read_calibration
from limelight.errors import ModelError, NotFiniteError, SettingError
from limelight.models.adapter import Adapter
from limelight.models.checkpoints.formats import Convertible, Published, config_of
from limelight.models.checkpoints.weights_on_disk import FETCHED, fetched
from limelight.models.families import families

# Settings of from_pretrained: those that say where files come from, and those of the model alone.
HUB = frozenset({
    "revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "proxies", "code_revision",
})  # fmt: skip
MODEL = frozenset({
    "device_map", "max_memory", "offload_folder", "offload_buffers", "offload_state_dict", "quantization_config",
    "attn_implementation", "experts_implementation", "low_cpu_mem_usage", "use_safetensors", "variant", "key_mapping",
    "tp_plan", "tp_size", "device_mesh", "use_kernels", "kernel_config", "ignore_mismatched_sizes", "weights_only",
    "gguf_file", "adapter_kwargs", "distributed_config",
})  # fmt: skip
HUB_NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")  # NAME or OWNER/NAME
log = logging.getLogger("limelight.models")
PACKAGED = {
    "demo-vision": "demo/vision",
    "demo-audio": "demo/audio",
    "demo-video": "demo/video",
    "smol-vision": "demo/smol_vision",
}
CALIBRATIONS = Path(__file__).with_name("calibrations")


def packaged(name: str) -> Path:
    """Return the folder of a model shipped with the library.

    Raises:
        ModelError: unknown name.
    """
    root = Path(__file__).resolve().parents[1]
    folder = root / PACKAGED.get(name, "")
    if name not in PACKAGED or not (folder / "config.json").is_file():
        have = [n for n, p in PACKAGED.items() if (root / p / "config.json").is_file()]
        raise ModelError(f"no shipped model {name!r}", hint=f"shipped models: {', '.join(have) or 'none'}")
    return folder


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    processor_kwargs: Mapping[str, Any] | None = None,
    calibration: str | Path | Calibration | None = AUTO,
    **kwargs: Any,
) -> Adapter:
    """Load a shipped miniature (``demo-vision``, ``demo-audio``, ``demo-video``), fetched weights (``whisper-base``,
    ``smol-vision``), a local checkpoint folder (CTranslate2's layout of Whisper included), or a name of the Hub.

    Args:
        processor_kwargs: for the processor's ``from_pretrained`` alone, such as ``{"max_pixels": 401408}``.
        calibration: of the grounding flag (:func:`limelight.calibrate`): a file, or the value itself; ``"auto"`` takes the
            user's own for this model, else the one beside the weights, else the one that the library ships for this name
            (the Whispers), else none; None or ``"none"``: none.
        kwargs: further settings of transformers' ``from_pretrained``: ``device_map``, ``max_memory``,
            ``quantization_config``, ``attn_implementation`` and others go to the model; ``revision``, ``token``,
            ``cache_dir``, ``local_files_only``, ``force_download``, ``subfolder``, ``proxies`` to model, config and
            processor.

    Raises:
        ModelError: the folder holds no model, or no generation class of transformers fits its config.
        NotFiniteError: a floating-point weight is NaN or infinite.
        SettingError: an unknown setting, two that exclude each other, one that this checkpoint's layout cannot take, or a
            calibration that is damaged or of another model.
    """
    found = calibration_for(name, calibration)
    adapter = _loaded(name, dtype, device, trust_remote_code, processor_kwargs, kwargs)
    if found is not None:
        check_fits(found, adapter.sizes)
        adapter.calibration = found
    log.info(
        "loaded %s: %s, family %s, %s", name, type(adapter.model).__name__, adapter.family.name,
        "with a calibration" if found is not None else "without a calibration",
    )  # fmt: skip
    return adapter


def calibration_for(name: str | Path, given: str | Path | Calibration | None) -> Calibration | None:
    """Return the calibration that :func:`load` uses for a model of that name."""
    if given is None or isinstance(given, Calibration):
        return given
    if given == NONE:
        return None
    if given != AUTO:
        return read_calibration(given)
    folder = packaged(str(name)) if str(name) in PACKAGED else Path(name)
    path = find_calibration(str(name), folder if folder.is_dir() else None) or shipped_calibration(str(name))
    return None if path is None else read_calibration(path)


def shipped_calibration(name: str) -> Path | None:
    """The calibration that the library ships for weights it does not ship: by limelight's name or the Hub's."""
    own = next((n for n, hub in FETCHED.items() if name in (n, hub)), None)
    path = CALIBRATIONS / f"{own}.json"
    return path if own is not None and path.is_file() else None


def _loaded(
    name: str | Path,
    dtype: torch.dtype | str,
    device: str | None,
    trust_remote_code: bool,
    processor_kwargs: Mapping[str, Any] | None,
    kwargs: dict[str, Any],
) -> Adapter:
    from transformers import AutoConfig

    from limelight.media.video_tensors import load_processor

    dtype = _checked(dtype, device, kwargs)
    hub = {k: v for k, v in kwargs.items() if k in HUB}
    source = _local(name)
    found = _published(source, kwargs, processor_kwargs)
    if found is not None:
        way, folder = found
        if not isinstance(way, Convertible):
            return _ready(*way.load(folder, dtype), device)
        source, hub = way.convert(folder), {}  # its files are here
        kwargs = {k: v for k, v in kwargs.items() if k not in HUB}
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **hub)
    except (OSError, ValueError, KeyError) as error:
        known = [*PACKAGED, *FETCHED]
        near = get_close_matches(str(name), known, n=1, cutoff=0.8)
        raise ModelError(
            f"cannot load a model from {str(name)!r}: {str(error).splitlines()[0]}",
            hint=(f"did you mean {near[0]}? " if near else "")
            + f"give a folder with config.json, a Hub name, or one of {', '.join(known)}",
        ) from error
    cls = _model_class(config)
    try:
        model = cls.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code, **kwargs)
    except (OSError, ValueError, TypeError, ImportError) as error:
        given = f" with {', '.join(sorted(kwargs))}" if kwargs else ""
        raise ModelError(
            f"cannot load the weights of {str(name)!r}{given}: {str(error).strip().splitlines()[0]}",
            hint="check these settings against transformers' from_pretrained"
            if kwargs
            else "check the checkpoint's files",
        ) from error
    try:
        processor = load_processor(
            source, config.model_type, trust_remote_code=trust_remote_code, **hub, **(processor_kwargs or {})
        )
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


def _checked(dtype: torch.dtype | str, device: str | None, kwargs: dict[str, Any]) -> torch.dtype | str:
    """Return the dtype to load in; raises SettingError for unknown or mutually exclusive settings."""
    unknown = sorted(set(kwargs) - HUB - MODEL - {"torch_dtype"})
    if unknown:
        near = get_close_matches(unknown[0], [*HUB, *MODEL, "dtype", "device"], n=1)
        raise SettingError(
            f"load() has no setting {unknown[0]!r}",
            hint=(f"did you mean {near[0]}? " if near else "")
            + "settings of the processor go into processor_kwargs={...}; "
            "or load the model yourself and pass it to limelight.wrap(model, processor)",
        )
    old = kwargs.pop("torch_dtype", None)
    if old is not None and dtype not in ("auto", old):
        raise SettingError(
            f"dtype={dtype} and torch_dtype={old} are mutually exclusive", hint="torch_dtype is the old name of dtype"
        )
    if device is not None and kwargs.get("device_map") is not None:
        raise SettingError(
            f"device={device!r} and device_map={kwargs['device_map']!r} are mutually exclusive",
            hint="device moves the whole model, device_map places its parts: keep one of them",
        )
    if device is not None and kwargs.get("quantization_config") is not None:
        raise SettingError(
            "a quantised model cannot be moved with device=", hint=f"place it while loading: device_map={device!r}"
        )
    return dtype if old is None else old


def _local(name: str | Path) -> str | Path:
    """Return the folder of a name defined by limelight (shipped or fetched); other names are returned unchanged."""
    if str(name) in PACKAGED:
        return packaged(str(name))
    if str(name) in FETCHED and not Path(name).is_dir():
        return fetched(str(name))
    if (isinstance(name, Path) or not HUB_NAME.fullmatch(name)) and not Path(name).exists():
        raise ModelError(
            f"there is no folder {str(name)!r}",
            hint="pass a folder with config.json and weights, or a Hub name such as llava-hf/llava-1.5-7b-hf",
        )
    return name


def _published(
    source: str | Path, kwargs: Mapping[str, Any], processor_kwargs: Mapping[str, Any] | None
) -> tuple[Published | Convertible, Path] | None:
    """Return the loader of a checkpoint in a family's own layout and its folder, or None."""
    folder = Path(source) if Path(source).is_dir() else None
    hub = {k: v for k, v in kwargs.items() if k in HUB}
    if folder is not None:
        config = config_of(folder)
    else:
        from transformers import PreTrainedConfig

        try:
            config, _ = PreTrainedConfig.get_config_dict(source, **hub)
        except (OSError, ValueError, KeyError):
            return None  # the ordinary loading path raises the error
    ways = (f.published for f in families().values())
    way = next((w for w in ways if w is not None and w.claims(folder, config)), None)
    if way is None:
        return None
    lost = [*(k for k in kwargs if k not in HUB), *(["processor_kwargs"] if processor_kwargs else [])]
    if lost and not isinstance(way, Convertible):
        raise SettingError(
            f"{str(source)!r} has its own layout, whose loader does not support {', '.join(lost)}",
            hint="leave them out; dtype, device and the Hub's settings work",
        )
    if folder is not None:
        return way, folder
    from huggingface_hub import snapshot_download

    kept = ["*.json", "*.safetensors", "*.bin", "*.tiktoken", "*.model"]
    download = ("revision", "token", "cache_dir", "local_files_only", "force_download")
    asked = {k: v for k, v in hub.items() if k in download}
    return way, Path(snapshot_download(str(source), allow_patterns=kept, **asked))


def _model_class(config: Any) -> Any:
    import transformers

    from limelight import compat

    for table in (compat.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, compat.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES):
        name = table.get(config.model_type)
        if name:
            return getattr(transformers, name[0] if isinstance(name, (tuple, list)) else name)
    text_only = compat.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    for name in (*(getattr(config, "architectures", None) or ()), text_only):
        cls = getattr(transformers, name, None) if isinstance(name, str) else None
        if cls is not None and hasattr(cls, "generate"):
            return cls
    raise ModelError(
        f"no generation class in transformers for model type {config.model_type!r}",
        hint="load the model yourself and pass it to limelight.wrap(model, processor)",
    )


def check_finite(model: nn.Module) -> None:
    """Raise NotFiniteError, naming the parameter, if a weight is NaN or infinite."""
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":  # offloaded: checked where it is used
            continue
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise NotFiniteError(
                f"the weight {name} contains NaN or infinity",
                hint="the checkpoint is damaged or was cast to a type that is too small; load it again with another dtype",
            )
