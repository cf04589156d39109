"""A tiny Qwen-VL-Chat with random weights, in the published layout: names, shapes, config.json and qwen.tiktoken."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = [b"what", b"is", b" is", b" in", b" the", b" pic", b"ture", b"Pic", b" cup", b"user", b"system"]
HIDDEN, FEED, LAYERS, WIDTH, TOWER, QUERIES, OUT = 32, 48, 2, 16, 2, 16, 32


def ranks() -> dict[bytes, int]:
    """256 bytes, then every prefix of a few words (each the merge of a known prefix and a byte)."""
    found = {bytes([i]): i for i in range(256)}
    for word in WORDS:
        for stop in range(2, len(word) + 1):
            found.setdefault(word[:stop], len(found))
    return found


def config() -> dict[str, Any]:
    vocab = len(ranks())
    return {
        "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": HIDDEN, "intermediate_size": 2 * FEED,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "kv_channels": HIDDEN // 4, "rotary_emb_base": 10000,
        "layer_norm_epsilon": 1e-6, "seq_length": 256, "vocab_size": vocab + 240, "no_bias": True, "rotary_pct": 1.0,
        "use_dynamic_ntk": True, "use_logn_attn": True, "tie_word_embeddings": False, "torch_dtype": "float32",
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "visual": {
            "heads": 2, "image_size": 24, "image_start_id": vocab + 214, "layers": TOWER, "mlp_ratio": 2.5,
            "output_dim": OUT, "patch_size": 4, "width": WIDTH, "n_queries": QUERIES,
        },
    }  # fmt: skip


def state(seed: int = 0) -> dict[str, Tensor]:
    """Weights by their published names; nothing is zero or one that could hide a mistake."""
    vocab = config()["vocab_size"]
    mlp = int(WIDTH * config()["visual"]["mlp_ratio"])
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, HIDDEN), "lm_head.weight": (vocab, HIDDEN)}
    shapes["transformer.ln_f.weight"] = (HIDDEN,)
    for n in range(LAYERS):
        b = f"transformer.h.{n}."
        shapes |= {
            f"{b}ln_1.weight": (HIDDEN,), f"{b}ln_2.weight": (HIDDEN,), f"{b}attn.c_attn.weight": (3 * HIDDEN, HIDDEN),
            f"{b}attn.c_attn.bias": (3 * HIDDEN,), f"{b}attn.c_proj.weight": (HIDDEN, HIDDEN),
            f"{b}mlp.w1.weight": (FEED, HIDDEN), f"{b}mlp.w2.weight": (FEED, HIDDEN),
            f"{b}mlp.c_proj.weight": (HIDDEN, FEED),
        }  # fmt: skip
    v = "transformer.visual."
    shapes |= {
        f"{v}conv1.weight": (WIDTH, 3, 4, 4), f"{v}positional_embedding": (QUERIES, WIDTH), f"{v}proj": (OUT, OUT),
        f"{v}attn_pool.query": (QUERIES, OUT), f"{v}attn_pool.pos_embed": (QUERIES, OUT),
        f"{v}attn_pool.kv_proj.weight": (OUT, WIDTH), f"{v}attn_pool.attn.in_proj_weight": (3 * OUT, OUT),
        f"{v}attn_pool.attn.in_proj_bias": (3 * OUT,), f"{v}attn_pool.attn.out_proj.weight": (OUT, OUT),
        f"{v}attn_pool.attn.out_proj.bias": (OUT,),
    }  # fmt: skip
    norms = {f"{v}ln_pre": WIDTH, f"{v}ln_post": OUT, f"{v}attn_pool.ln_q": OUT, f"{v}attn_pool.ln_kv": OUT}
    for n in range(TOWER):
        b = f"{v}transformer.resblocks.{n}."
        norms |= {f"{b}ln_1": WIDTH, f"{b}ln_2": WIDTH}
        shapes |= {
            f"{b}attn.in_proj.weight": (3 * WIDTH, WIDTH), f"{b}attn.in_proj.bias": (3 * WIDTH,),
            f"{b}attn.out_proj.weight": (WIDTH, WIDTH), f"{b}attn.out_proj.bias": (WIDTH,),
            f"{b}mlp.c_fc.weight": (mlp, WIDTH), f"{b}mlp.c_fc.bias": (mlp,),
            f"{b}mlp.c_proj.weight": (WIDTH, mlp), f"{b}mlp.c_proj.bias": (WIDTH,),
        }  # fmt: skip
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in sorted(shapes.items()):
        drawn = torch.randn(shape, generator=generator)
        usual = 0.7 if name.endswith("wte.weight") else 1.5 / math.sqrt(math.prod(shape[1:]))
        scale = 0.2 if len(shape) == 1 else usual
        near_one = name.endswith(".weight") and len(shape) == 1
        out[name] = drawn * scale + float(near_one)
    return out


def write(folder: Path, *, safetensors: bool = False, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config()))
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in ranks().items()]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    weights = state(seed)
    weights["transformer.h.0.attn.masked_bias"] = torch.zeros(1)
    if safetensors:
        from safetensors.torch import save_file

        save_file(weights, folder / "model.safetensors")
        return folder
    names = sorted(weights)
    for part, some in enumerate((names[::2], names[1::2]), 1):
        torch.save({n: weights[n] for n in some}, folder / f"pytorch_model-0000{part}-of-00002.bin")
    return folder
