"""What many tests share: built models of the zoo, a pure-float64 LLaVA without biases, and a snapshot of a model's state."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from limelight.models.adapter import Adapter
from tests.zoo import ZOO
from tests.zoo.base import enliven
from tests.zoo.parts import CLIP, IMAGE, text

PROMPT = [1, 31, 32, *[IMAGE] * 16, 41, 42, 43]


def cast(model: Any, dtype: torch.dtype) -> Any:
    """In place; Llama4's complex rotary buffers stay complex, which ``.to`` would make real."""

    def to(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return model._apply(to) if any(b.is_complex() for b in model.buffers()) else model.to(dtype)


@lru_cache(maxsize=4)
def built(name: str, dtype: torch.dtype = torch.float32) -> Adapter:
    """A zoo model on eager attention (the function limelight's must equal bit for bit). Shared: leave it as it is."""
    model = cast(ZOO[name].build(), dtype)
    model.set_attn_implementation("eager")
    return Adapter(model)


def fresh(name: str, dtype: torch.dtype = torch.float32) -> Adapter:
    """The same, for a test that breaks it."""
    model = cast(ZOO[name].build(), dtype)
    model.set_attn_implementation("eager")
    return Adapter(model)


class WideNorm(nn.Module):
    """RMSNorm in the dtype of its input (transformers' own computes in float32 whatever the model's dtype)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def llava(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> LlavaForConditionalGeneration:
    """A two-layer LLaVA with GQA and no bias anywhere in its text stack, whose norms compute in ``dtype``."""
    config = LlavaConfig(
        vision_config=dict(CLIP),
        text_config=text("llama", **{"num_key_value_heads": 2, **changes}),
        image_token_index=IMAGE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = enliven(LlavaForConditionalGeneration(config), seed=seed).to(dtype).eval()
    model.set_attn_implementation("eager")
    decoder = model.get_decoder()
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(parent, name, WideNorm(child.weight.detach().clone(), child.variance_epsilon))
    with torch.no_grad():
        model.lm_head.weight[IMAGE] *= 0.01
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def llava_inputs(model: Any, seed: int = 1) -> dict[str, Tensor]:
    ids = torch.tensor([PROMPT])
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels.to(model.dtype)}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything a context or a call must leave as it found it: weights and their versions, instances, hooks, configs.

    What transformers itself hangs on a tower at its first run, to hand on hidden states, is not counted.
    """
    state: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[f"tensor {name}"] = (tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.dtype)
        flat = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        state[f"value {name}"] = flat.double().sum().item()
        state[f"gradient {name}"] = tensor.grad
    for name, module in model.named_modules():
        state[f"module {name}"] = (
            id(module),
            module.training,
            tuple(sorted(vars(module).keys() - {"_modules", "_output_capturing_hooks_installed"})),
        )
        state[f"forward {name}"] = vars(module).get("forward")
        for key, value in vars(module).items():
            if "hooks" in key and isinstance(value, dict):
                own = "transformers.utils.output_capturing"
                state[f"{key} {name}"] = tuple(k for k, hook in value.items() if getattr(hook, "__module__", "") != own)
        config = getattr(module, "config", None)
        if config is not None:
            state[f"attention {name}"] = getattr(config, "_attn_implementation_internal", None)
    return state


WORDS = {
    "<pad>": 0,
    "<s>": 1,
    "</s>": 2,
    "<image>": 5,
    "<video>": 6,
    "<|AUDIO|>": 7,
    "<|audio_bos|>": 3,
    "<|audio_eos|>": 4,
}
TEMPLATE = (
    "<s>{% for m in messages %}{% for i in m['content'] %}{% if i['type'] == 'text' %} {{ i['text'] }}"
    "{% elif i['type'] == 'image' %}<image>{% elif i['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% endif %}{% endfor %}{% endfor %} answer"
)


def tokenizer(specials: dict[str, int] | None = None, **changes: Any) -> Any:
    """Words w8 .. w125 and a few real ones; whitespace splits. ``specials``: further special tokens and their ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    real = ["what", "is", "in", "the", "picture", "sound", "?", "answer", "stop", "here"]
    names = {i: f"w{i}" for i in range(128)} | {30 + i: w for i, w in enumerate(real)}
    names[126] = "abcdef"  # what transformers' StopStringCriteria spells a tokenizer with
    words = {w: i for w, i in WORDS.items() if specials is None or i < 3} | (specials or {})
    vocabulary = {names[i]: i for i in range(127) if i not in words.values()} | words | {"<unk>": 127}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    extra = {"additional_special_tokens": [w for w in words if w not in special.values()]}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **special, **extra, **changes)


def vision_processor() -> Any:
    """A LlavaProcessor for the zoo's llava: 16 x 16 pixels, 16 image tokens."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size, do_convert_rgb=True)
    return LlavaProcessor(
        images, tokenizer(), patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>", chat_template=TEMPLATE,
    )  # fmt: skip


def audio_processor() -> Any:
    """A Qwen2AudioProcessor for the zoo's qwen2_audio: at most 64 frames of 16 mel bins."""
    from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=16)
    extractor.n_samples, extractor.nb_max_frames = 64 * 160, 64
    return Qwen2AudioProcessor(extractor, tokenizer(), chat_template=TEMPLATE)
