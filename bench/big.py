"""A 7B model's width on a CPU: what a token and a prefill cost, and how much memory they take beyond the model.

    python -m bench.big            both shapes (over an hour beside other work; what is measured is kept)
    python -m bench.big --tiny     the same program at a tiny size, for tests
    python -m bench.big --table    print the committed table, run nothing

LLaVA-1.5-7B's shape (4096 wide, 32 heads, vocabulary 32064, CLIP-L/336, 576 image tokens) and Qwen2.5-VL-7B's (3584 wide,
28 heads over 4 key/value heads, vocabulary 152064), random weights in float32, built from configs at two depths each. Settings
take turns, plain cached greedy decoding of the same model among them: process time of one thread. The cost of a layer is the
difference between the two depths, so that a full stack is computed from measured parts:
``t(L) = t(a) + (L - a) (t(b) - t(a)) / (b - a)``. Memory is the peak of torch's allocator beyond the model, likewise.
bfloat16 is run at the smaller depth for correctness only (these processors multiply it slowly): memory in bfloat16 is half
of what is measured in float32, as far as the values are stored in the model's type. Qwen2.5-VL's encoder has 2 of its 32 layers
here: it is run once whatever the setting and would take most of the time, so its prefill is nearly the decoder's alone.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.attribution_worker import peak
from bench.machine import about, add_busy, require_quiet

RESULTS = Path(__file__).parent / "results" / "big.json"
WORDS, TOKENS, REPEATS, ANSWER = 24, 9, 3, 32
SETTINGS = ("greedy", "meter", "relevance-contrastive", "cached LIME, 1 update", "VCD", "M3ID", "audit")


@dataclass(frozen=True)
class Shape:
    """A model of one family at one width; ``full``: how many layers the published model has."""

    name: str
    text: dict[str, int]
    vision: dict[str, int]
    depths: tuple[int, int]
    full: int
    vocabulary: int


LLAVA = Shape(
    "LLaVA-1.5-7B",
    {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32},
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    (2, 6), 32, 32064,
)  # fmt: skip
QWEN = Shape(
    "Qwen2.5-VL-7B",
    {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4},
    {"hidden_size": 1280, "intermediate_size": 3420, "depth": 2, "num_heads": 16},
    (2, 4), 28, 152064,
)  # fmt: skip
TINY = (
    Shape(
        "LLaVA-1.5-7B",
        {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4},
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        (1, 2), 4, 320,
    ),
    Shape(
        "Qwen2.5-VL-7B",
        {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
        {"hidden_size": 16, "intermediate_size": 32, "depth": 2, "num_heads": 2},
        (1, 2), 4, 320,
    ),
)  # fmt: skip


def build(shape: Shape, depth: int, *, dtype: torch.dtype = torch.float32) -> Any:
    """The model with ``depth`` decoder layers and random weights."""
    if shape.name.startswith("LLaVA"):
        make, config = _llava(shape, depth)
    else:
        make, config = _qwen(shape, depth)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        model = make._from_config(config, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False)


def _llava(shape: Shape, depth: int) -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(**shape.text, num_hidden_layers=depth, vocab_size=shape.vocabulary, max_position_embeddings=4096)
    vision = CLIPVisionConfig(**shape.vision, image_size=_side(shape), patch_size=14)
    return LlavaForConditionalGeneration, LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=shape.vocabulary - 1, vision_feature_layer=-1
    )


def _qwen(shape: Shape, depth: int) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    half = shape.text["hidden_size"] // shape.text["num_attention_heads"] // 2
    side = 3 * half // 8
    text = {
        **shape.text, "num_hidden_layers": depth, "vocab_size": shape.vocabulary, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half - 2 * side, side, side]},
    }  # fmt: skip
    vision = {
        **shape.vision, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": shape.text["hidden_size"],
        "window_size": 112, "fullatt_block_indexes": [shape.vision["depth"] - 1],
    }  # fmt: skip
    last = shape.vocabulary
    return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=last - 1, video_token_id=last - 2,
        vision_start_token_id=last - 3, vision_end_token_id=last - 4,
    )  # fmt: skip


def _side(shape: Shape) -> int:
    return 336 if shape.vocabulary > 1000 else 28


def prompt(shape: Shape, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A picture of 576 positions (tiny: 4) and some words."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, shape.vocabulary - 8, (1, WORDS), generator=generator)
    if shape.name.startswith("LLaVA"):
        side = _side(shape)
        pixels: dict[str, Any] = {"pixel_values": torch.randn(1, 3, side, side, generator=generator).to(dtype)}
        count = (side // 14) ** 2
    else:
        across = 48 if shape.vocabulary > 1000 else 4
        values = torch.randn(across * across, 3 * 2 * 14 * 14, generator=generator).to(dtype)
        pixels = {"pixel_values": values, "image_grid_thw": torch.tensor([[1, across, across]])}
        count = across * across // 4
    image = torch.full((1, count), shape.vocabulary - 1)
    ids = torch.cat([words[:, :8], image, words[:, 8:]], dim=1)
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    if not shape.name.startswith("LLaVA"):
        out["mm_token_type_ids"] = (ids == shape.vocabulary - 1).long()
    return out


def strategies() -> dict[str, Callable[[], Any]]:
    import limelight

    return {
        "greedy": limelight.greedy,
        "meter": limelight.meter,
        "relevance-contrastive": limelight.relevance_contrastive,
        "cached LIME, 1 update": lambda: limelight.strategy("lime-cached", updates=1),
        "VCD": lambda: limelight.strategy("vcd"),
        "M3ID": lambda: limelight.strategy("m3id", variant="released"),
    }


def tokens(model: Any, inputs: dict[str, Any], strategy: Any, count: int) -> tuple[float, float]:
    """Process seconds of the prefill with its token, and the median of each later token."""
    import limelight

    stamps = [time.process_time()]
    fn = limelight.custom_generate(
        strategy, tensors=inputs, on_step=lambda *_: stamps.append(time.process_time()), return_cache=False
    )
    model.generate(
        **inputs, custom_generate=fn, max_new_tokens=count, min_new_tokens=count, do_sample=False, disable_compile=True
    )
    gaps = [b - a for a, b in itertools.pairwise(stamps[1:])]
    return stamps[1] - stamps[0], statistics.median(gaps)


def audit(model: Any, inputs: dict[str, Any], *, dual: bool) -> float:
    """Process seconds of one forward over prompt and answer; ``dual``: with the tangents that an audit needs."""
    import limelight
    from limelight.relevance.forward.stream import DualOutput, DualStream, modality_channel

    said = torch.randint(5, 300, (1, ANSWER), generator=torch.Generator().manual_seed(3))
    ids = torch.cat([inputs["input_ids"], said], dim=1)
    given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        given["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(said)], dim=1)
    start = time.process_time()
    with torch.no_grad():
        if not dual:
            model(**given, use_cache=False, logits_to_keep=ANSWER)
            return time.process_time() - start
        adapter = limelight.wrap(model)
        call = adapter.capture(given)
        channel = modality_channel(adapter.modality_ids(given) > 0, call.mask)
        stream = DualStream(adapter, call, [channel], continues=False)
        stream.heads(DualOutput(stream.every_position()[:, :, -ANSWER:].flatten(1, 2)))
    return time.process_time() - start


def _median(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [a / b for a, b in pairs]
    return {
        "seconds": statistics.median(a for a, _ in pairs), "greedy_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
    }  # fmt: skip


def measured(model: Any, inputs: dict[str, Any], repeats: int, names: tuple[str, ...] = SETTINGS) -> dict[str, Any]:
    """Rows by name: prefill and token, in rounds of which greedy is a part; the peak of each beyond the model."""
    known = {k: v for k, v in strategies().items() if k in names}
    for run in known.values():
        tokens(model, inputs, run(), 2)  # checks and probes
    if "audit" in names:
        audit(model, inputs, dual=True)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
    audits: list[tuple[float, float]] = []
    for _ in range(repeats):
        for name, run in known.items():
            times[name].append(tokens(model, inputs, run(), TOKENS))
        if "audit" in names:
            audits.append((audit(model, inputs, dual=True), audit(model, inputs, dual=False)))
    most = {name: peak(lambda run=run: tokens(model, inputs, run(), 3)) for name, run in known.items()}  # type: ignore[misc]
    rows: dict[str, Any] = {}
    for name in known:
        pairs = list(zip(times[name], times["greedy"], strict=True))
        rows[name] = {
            "prefill": _median([(a[0], b[0]) for a, b in pairs]),
            "token": _median([(a[1], b[1]) for a, b in pairs]),
            "peak_bytes": most[name],
            "greedy_peak_bytes": most["greedy"],
        }
    if "audit" not in names:
        return rows
    mine, base = (peak(lambda d=d: audit(model, inputs, dual=d)) for d in (True, False))  # type: ignore[misc]
    rows["audit"] = {"forward": _median(audits), "peak_bytes": mine, "greedy_peak_bytes": base}
    return rows


def correct(shape: Shape) -> dict[str, Any]:
    """The meter in bfloat16 at the smaller depth: Phi against float32, relative to its spread over the vocabulary."""
    import limelight
    from limelight.relevance.forward.stream import DualStream, modality_channel

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, inputs = build(shape, shape.depths[0], dtype=dtype), prompt(shape, dtype)
        adapter = limelight.wrap(model)
        with torch.no_grad():
            call = adapter.capture(inputs)
            channel = modality_channel(adapter.modality_ids(inputs) > 0, call.mask)
            stream = DualStream(adapter, call, [channel], reserve=1)
            found[dtype] = stream.heads(stream.prefill())[1].float().flatten()
        del model, adapter, call, stream
        gc.collect()
    exact, rounded = found[torch.float32], found[torch.bfloat16]
    return {"relative_error": float((exact - rounded).norm() / (exact - exact.mean()).norm())}


def stacked(small: float, large: float, depths: tuple[int, int], layers: int) -> float:
    """What a stack of ``layers`` takes, from what two depths take."""
    a, b = depths
    return small + (layers - a) * (large - small) / (b - a)


def write(found: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the committed table, run nothing")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    add_busy(parser)
    args = parser.parse_args()
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if not args.table:
        torch.set_num_threads(1)
        shapes = TINY if args.tiny else (LLAVA, QWEN)
        found.setdefault("rows", [])
        require_quiet(busy=args.busy or args.tiny)
        found["machine"] = about()
        for shape in shapes:
            for depth in shape.depths:
                _rows(shape, depth, args.repeats, found, args.out)
            bf16 = found.setdefault("bfloat16", {})
            if shape.name not in bf16:
                bf16[shape.name] = correct(shape)
                write(found, args.out)
    from bench.big_table import table

    print(table(found))


def _rows(shape: Shape, depth: int, repeats: int, found: dict[str, Any], out: Path) -> None:
    """Measure the settings that the file does not have yet at this depth."""
    known = {r["name"] for r in found["rows"] if (r["shape"], r["depth"]) == (shape.name, depth)}
    missing = tuple(name for name in SETTINGS if name not in known)
    if not missing:
        return
    turns = missing if missing == ("audit",) else ("greedy", *(n for n in missing if n != "greedy"))
    started = time.time()
    model, inputs = build(shape, depth), prompt(shape)
    own = {"shape": shape.name, "depth": depth, "full": shape.full, "depths": list(shape.depths)}
    rows = {name: row for name, row in measured(model, inputs, repeats, turns).items() if name in missing}
    load = round(os.getloadavg()[0], 1)
    found["rows"] += [{**own, "name": name, **row, "load": load} for name, row in rows.items()]
    write(found, out)
    print(f"{shape.name}, {depth} layers: {time.time() - started:.0f} s", file=sys.stderr, flush=True)
    del model
    gc.collect()


if __name__ == "__main__":
    main()
