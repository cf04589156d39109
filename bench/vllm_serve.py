"""The vision miniature in vLLM: the answers of the library's own loop, and throughput.

    python -m bench.vllm_serve --write FOLDER     in limelight's environment: the model's folder, prompts, and our answers
    python -m bench.vllm_serve --read FOLDER      in vLLM's environment (CPU or GPU): the same prompts, compared

Two steps, because vLLM pins another version of transformers. Methods: plain decoding, FLB, and M3ID as paired requests (the second
one without the picture).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

TOKENS, COUNT = 16, 24
METHODS: dict[str, dict[str, float]] = {
    "plain": {},
    "flb": {"gamma": 0.3, "decay": 0.05, "beta": 0.1},
    "m3id": {"decay": 0.1, "gate": 1.0, "beta": 0.1},
}


def write(folder: Path, count: int) -> None:
    """Prompts, pictures and the answers of our loop, and its tokens per second: one answer after the other, where vLLM gets all
    prompts at once."""
    import limelight
    from limelight.decoding.registry import strategies
    from limelight.demo.questions import captions
    from limelight.models.loading import packaged

    folder.mkdir(parents=True, exist_ok=True)
    export(packaged("demo-vision"), folder / "model")
    adapter = limelight.load("demo-vision")
    template = adapter.processor.apply_chat_template
    rows: list[dict[str, Any]] = []
    for number, asked in enumerate(captions("test", "E-wrong", count)):
        path = folder / f"{number}.png"
        asked.scene.image().save(path)
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked.text}]}]
        prepared = adapter.prepare(asked.text, {"image": str(path)}).tensors
        words = prepared["input_ids"][0][prepared["input_ids"][0] != adapter.model.config.image_token_id]
        rows.append(
            {
                "image": path.name,
                "text": asked.text,
                "prompt": template(turn, add_generation_prompt=True, tokenize=False),
                "without": words.tolist(),
                "answers": {},
            }
        )
    spent = {}
    for method, settings in METHODS.items():
        if method not in (*strategies(), "plain"):
            continue
        strategy = limelight.greedy() if method == "plain" else limelight.strategy(method, **settings)
        started = time.perf_counter()
        made = 0
        for row in rows:
            media = {"image": str(folder / row["image"])}
            found = limelight.generate(
                adapter, messages=row["text"], media=media, strategy=strategy, max_new_tokens=TOKENS, do_sample=False,
                relevance=False,
            )  # fmt: skip
            row["answers"][method] = list(found.token_ids)
            made += len(found.token_ids)
        spent[method] = made / (time.perf_counter() - started)
    (folder / "rows.json").write_text(json.dumps({"rows": rows, "tokens_per_second": spent}, indent=1) + "\n")


def export(source: Path, target: Path) -> None:
    """The checkpoint as vLLM reads it: its weights alone, with the names of transformers 4 (``vision_tower.vision_model``)."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(
        source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "examples", "icons")
    )
    for extra in target.glob("*.safetensors"):
        extra.unlink()
    weights = load_file(source / "model.safetensors")
    part = "vision_tower."
    named = {
        k.replace(part, f"{part}vision_model.") if part in k and f"{part}vision_model." not in k else k: v
        for k, v in weights.items()
    }
    save_file(named, target / "model.safetensors", metadata={"format": "pt"})


def read(folder: Path) -> None:
    """The same prompts in vLLM; a table of equal answers and tokens per second."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    told = json.loads((folder / "rows.json").read_text())
    rows = told["rows"]
    llm = LLM(
        model=str(folder / "model"), dtype="float32", max_model_len=512, enforce_eager=True, max_num_seqs=64,
        limit_mm_per_prompt={"image": 1}, enable_chunked_prefill=False, enable_prefix_caching=False,
        logits_processors=_named(),
    )  # fmt: skip

    def sampling(extra: dict[str, Any]) -> Any:
        return SamplingParams(temperature=0.0, max_tokens=TOKENS, extra_args=extra or None)

    def picture(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": row["prompt"], "multi_modal_data": {"image": Image.open(folder / row["image"])}}

    llm.generate([picture(rows[0])], [sampling({})], use_tqdm=False)  # warm up
    print("| method | equal answers | our tokens/s | vLLM tokens/s |\n|---|---|---|---|")
    for method, settings in METHODS.items():
        if method not in rows[0]["answers"]:
            continue
        extra = {} if method == "plain" else {"limelight": method, **{f"limelight_{k}": v for k, v in settings.items()}}
        prompts, options = [], []
        for number, row in enumerate(rows):
            pair = {"limelight_pair": str(number)} if method == "m3id" else {}
            prompts.append(picture(row))
            options.append(sampling({**extra, **pair}))
            if pair:
                prompts.append({"prompt_token_ids": row["without"]})
                options.append(sampling({**extra, **pair, "limelight_role": "contrast"}))
        started = time.perf_counter()
        out = llm.generate(prompts, options, use_tqdm=False)
        spent = time.perf_counter() - started
        answers = [list(o.outputs[0].token_ids) for o in out][:: 2 if method == "m3id" else 1]
        equal = sum(a == r["answers"][method] for a, r in zip(answers, rows, strict=True))
        ours = told["tokens_per_second"][method]
        print(f"| {method} | {equal} of {len(rows)} | {ours:.1f} | {sum(map(len, answers)) / spent:.1f} |")


def _named() -> list[str]:
    """The processor by its name, where limelight's entry point is not installed."""
    from importlib.metadata import entry_points

    found = [e.name for e in entry_points(group="vllm.logits_processors")]
    return [] if "limelight" in found else ["limelight.engines.vllm_processor:LimelightProcessor"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--read", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    args = parser.parse_args()
    if args.write is not None:
        write(args.write, args.count)
    if args.read is not None:
        read(args.read)


if __name__ == "__main__":
    main()
