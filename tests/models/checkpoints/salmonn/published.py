"""A tiny SALMONN with random weights, in the layout of its published parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from tests.deployed import chatter
from tests.zoo.parts import text

SECONDS, D, HIDDEN, BERT, RANK, VOCAB = 3, 16, 32, 64, 8, 288
CFG: dict[str, Any] = {
    "embed_dim": 8, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_attention_heads": 2,
    "encoder_layers": 2, "input_patch_size": 16, "conv_bias": False, "conv_pos": 8, "conv_pos_groups": 4,
    "num_buckets": 16, "max_distance": 40, "deep_norm": True, "gru_rel_pos": True, "layer_norm_first": False,
    "activation_fn": "gelu", "relative_position_embedding": True, "finetuned_model": True, "predictor_class": 5,
    "dropout": 0.0, "layer_wise_gradient_decay_ratio": 0.6,
}  # fmt: skip


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in sorted(shapes.items()):
        value = torch.randn(shape, generator=generator)
        flat = len(shape) == 1 or "grep_a" in name
        near_one = flat and (name.endswith(".weight") or "grep_a" in name)
        out[name] = value * (0.2 if flat else 1.2 / math.sqrt(math.prod(shape[1:]))) + float(near_one)
    return out


def with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def beats(seed: int = 1) -> dict[str, Tensor]:
    e, w, f, h = (
        CFG[k] for k in ("embed_dim", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads")
    )
    taps, groups = CFG["conv_pos"], CFG["conv_pos_groups"]
    shapes = {
        "patch_embedding.weight": (e, 1, 16, 16), **with_bias("layer_norm", e), **with_bias("post_extract_proj", w, e),
        "encoder.pos_conv.0.weight_v": (w, w // groups, taps), "encoder.pos_conv.0.weight_g": (1, 1, taps),
        "encoder.pos_conv.0.bias": (w,), **with_bias("encoder.layer_norm", w), **with_bias("predictor", 5, w),
    }  # fmt: skip
    for n in range(CFG["encoder_layers"]):
        at = f"encoder.layers.{n}"
        for part in "qkv":
            shapes |= with_bias(f"{at}.self_attn.{part}_proj", w, w)
        shapes |= with_bias(f"{at}.self_attn.out_proj", w, w) | with_bias(f"{at}.self_attn.grep_linear", 8, w // h)
        shapes |= {f"{at}.self_attn.grep_a": (1, h, 1, 1)}
        shapes |= with_bias(f"{at}.self_attn_layer_norm", w) | with_bias(f"{at}.final_layer_norm", w)
        shapes |= with_bias(f"{at}.fc1", f, w) | with_bias(f"{at}.fc2", w, f)
        shapes |= {f"{at}.self_attn.relative_attention_bias.weight": (CFG["num_buckets"], h)}
    out = drawn(shapes, seed)
    table = out["encoder.layers.0.self_attn.relative_attention_bias.weight"] * 3
    for n in range(CFG["encoder_layers"]):
        out[f"encoder.layers.{n}.self_attn.relative_attention_bias.weight"] = table
    return out


def trained(seed: int = 2) -> dict[str, Tensor]:
    """What ``salmonn_v1.pth`` holds: all that was trained, nothing that was frozen."""
    both = D + CFG["encoder_embed_dim"]
    shapes = {
        "speech_query_tokens": (1, 1, BERT), **with_bias("ln_speech", D), **with_bias("ln_audio", CFG["encoder_embed_dim"]),
        **with_bias("speech_llama_proj", HIDDEN, BERT), **with_bias("speech_Qformer.bert.embeddings.LayerNorm", BERT),
    }  # fmt: skip
    for n in range(2):
        at = f"speech_Qformer.bert.encoder.layer.{n}"
        for block, width in (("attention", BERT), ("crossattention", both)):
            shapes |= with_bias(f"{at}.{block}.self.query", BERT, BERT)
            shapes |= with_bias(f"{at}.{block}.self.key", BERT, width) | with_bias(
                f"{at}.{block}.self.value", BERT, width
            )
            shapes |= with_bias(f"{at}.{block}.output.dense", BERT, BERT)
            shapes |= with_bias(f"{at}.{block}.output.LayerNorm", BERT)
        shapes |= with_bias(f"{at}.intermediate_query.dense", 96, BERT) | with_bias(
            f"{at}.output_query.dense", BERT, 96
        )
        shapes |= with_bias(f"{at}.output_query.LayerNorm", BERT)
        for part in "qv":
            lora = f"llama_model.base_model.model.model.layers.{n}.self_attn.{part}_proj"
            shapes |= {f"{lora}.lora_A.weight": (RANK, HIDDEN), f"{lora}.lora_B.weight": (HIDDEN, RANK)}
    out = drawn(shapes, seed)
    out["speech_query_tokens"] = out["speech_query_tokens"] * 8
    return {n: t * 0.2 if ".lora_" in n else t for n, t in out.items()}


def lively(model: Any) -> Any:
    """Every weight drawn anew, so that nothing is zero or one that could hide a mistake."""
    found = drawn({n: tuple(p.shape) for n, p in model.named_parameters()}, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(found[name])
    return model


def tokenizer() -> Any:
    """Llama's: characters, bytes where there is no character, a blank as a letter."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    known = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz?"]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(known)}, [], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    blank = decoders.Replace("\u2581", " ")
    inner.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def write(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    whisper = WhisperConfig(
        vocab_size=64, num_mel_bins=16, d_model=D, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=24, max_source_positions=50 * SECONDS,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    llama = LlamaConfig(
        **{k: v for k, v in text("llama", vocab_size=VOCAB, max_position_embeddings=512).items() if k != "model_type"}
    )
    with chatter(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lively(WhisperModel(whisper)).save_pretrained(folder / "whisper-large-v2")
        lively(LlamaForCausalLM(llama)).save_pretrained(folder / "vicuna-7b-v1.5")
        tokenizer().save_pretrained(folder / "vicuna-7b-v1.5")
        WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS).save_pretrained(folder / "whisper-large-v2")
    torch.save({"cfg": CFG, "model": beats()}, folder / "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt")
    torch.save({"model": trained(), "iters": 7}, folder / "salmonn_v1.pth")
    return folder
