"""Compare exact LIME with recorded values of the authors' code: ``python -m limelight.golden DIR``.

``DIR/FAMILY/model`` is a checkpoint, ``DIR/FAMILY/inputs.safetensors`` the keyword arguments of its forward, and
``DIR/FAMILY/golden_RUN.{json,safetensors}`` one recorded run. ``DIR/noise_floor.json`` gives, per quantity, the
deviation that a relative jitter of 6e-8 of the weights causes; ten times that is the tolerance. A run without a floor
of its own takes the largest of its family's.

Prints each quantity's largest deviation and its multiple of the floor; exits 1 beyond the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.methods.lime import Iteration, optimise
from limelight.errors import DataError, LimelightError
from limelight.models.adapter import Adapter
from limelight.models.families import PaperSettings
from limelight.relevance.composites import ATTN_LRP, GRADIENT_INPUT, RELEASED_AUDIO, Composite

TOLERANCE = 10.0
QUANTITIES = (
    "logits_raw", "relevance", "target_logit", "kl_loss", "relevance_loss", "loss", "grad_norm_rel", "delta_max_over_lr",
)  # fmt: skip


@dataclass
class Comparison:
    """Largest deviation of each quantity in one recorded run."""

    family: str
    run: str
    floor: Mapping[str, float]
    ids: list[int] = field(default_factory=list)
    want_ids: list[int] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    targets_differ: int = 0

    def see(self, quantity: str, deviation: float) -> None:
        deviation = float("inf") if deviation != deviation else deviation
        self.worst[quantity] = max(self.worst.get(quantity, 0.0), deviation)
        self.count[quantity] = self.count.get(quantity, 0) + 1

    def multiple(self, quantity: str) -> float:
        """Deviation in units of the noise floor."""
        floor = self.floor.get(quantity, 0.0)
        deviation = self.worst[quantity]
        return deviation / floor if floor else (0.0 if deviation == 0 else float("inf"))

    @property
    def passed(self) -> bool:
        return (
            self.ids == self.want_ids
            and not self.targets_differ
            and bool(self.worst)
            and all(self.multiple(q) <= TOLERANCE for q in self.worst)
        )


def composite_of(status: Mapping[str, str]) -> Composite:
    """Return the composite that was active in a recorded run, according to the recorded modules of its functions."""
    attention = "lxt" in status["eager_attention_forward"]
    norms = "lxt" in status["norm_forward"]
    if attention and norms:
        return ATTN_LRP
    return RELEASED_AUDIO if norms else GRADIENT_INPUT


def compare(folder: Path, run: str, floors: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Replay one recorded run with exact LIME and measure every recorded quantity.

    Raises:
        DataError: a file is missing or does not fit.
    """
    from safetensors.torch import load_file

    meta = json.loads(_existing(folder / f"golden_{run}.json").read_text())
    tensors = load_file(_existing(folder / f"golden_{run}.safetensors"))
    adapter = _adapter(_existing(folder / "model"))
    inputs = adapter.complete(load_file(_existing(folder / "inputs.safetensors")))
    hyper = meta["hyper"]
    settings = PaperSettings(
        lr=hyper["opt_lr"], kl_weight=hyper["lambda_kl"], tau=hyper["tau"], steps=hyper["opt_steps"]
    )
    result = Comparison(folder.name, run, floor_of(floors, folder.name, run), want_ids=list(meta["generated_ids"]))
    steps = {(s["tok"], s["opt"]): s for s in meta["steps"]}
    layers = sorted(adapter.attention_layers)
    call = adapter.capture(inputs)
    for tok, want in enumerate(result.want_ids):
        modality = torch.zeros_like(call.mask)
        modality[:, meta["modality_bos_idx"] : meta["modality_eos_idx"] + 1] = True
        seen: list[Iteration] = []
        optimised = optimise(
            adapter, call, modality, lambda logits: logits.argmax(-1), settings,
            composite=composite_of(meta["patch_status"]), trace=seen.append,
        )  # fmt: skip
        for opt, iteration in enumerate(seen):
            _measure(result, tensors, f"tok{tok}.opt{opt}", steps[tok, opt], iteration, layers, settings.lr)
        got = int(optimised.logits[0].argmax())
        result.ids.append(got)
        final = tensors.get(f"tok{tok}.final_logits_after")
        if final is not None:
            result.see("logits_raw", _gap(optimised.logits[0], final))
        if got != want:
            break
        with torch.no_grad():
            call = call.appended(adapter.embed(torch.tensor([[got]])))
    return result


def _measure(
    result: Comparison,
    tensors: Mapping[str, Tensor],
    key: str,
    step: Mapping[str, Any],
    it: Iteration,
    layers: list[int],
    lr: float,
) -> None:
    result.targets_differ += int(it.target[0]) != step["next_id"]
    result.see("logits_raw", _gap(it.logits[0], tensors[f"{key}.logits_raw"]))
    result.see("relevance", _gap(it.relevance[0], tensors[f"{key}.relevance"]))
    result.see("target_logit", abs(float(it.logits[0, int(it.target[0])]) - step["target_logit"]))
    result.see("kl_loss", abs(float(it.kl[0]) - step["kl_loss"]))
    result.see("relevance_loss", abs(float(it.relevance_loss[0]) - step["relevance_loss"]))
    result.see("loss", abs(float(it.loss[0]) - step["loss"]))
    half = len(layers)
    for which, offset in (("k", 0), ("v", half)):
        for n, layer in enumerate(layers):
            gradient, delta = it.gradients[offset + n], it.deltas[offset + n]
            want = float(step[f"grad_norm_{which}"][layer])
            result.see("grad_norm_rel", abs(float(gradient.norm()) - want) / max(want, 1e-12))
            result.see("delta_max_over_lr", abs(float(delta.abs().max()) - step[f"delta_absmax_{which}"][layer]) / lr)
            recorded = tensors.get(f"{key}.layer{layer}.grad_{which}")
            if recorded is not None:
                result.see("grad_norm_rel", float((gradient[0] - recorded).norm() / recorded.norm().clamp_min(1e-12)))
            recorded = tensors.get(f"{key}.layer{layer}.delta_{which}_after")
            if recorded is not None:
                result.see("delta_max_over_lr", _gap(delta[0], recorded) / lr)


def _gap(actual: Tensor, recorded: Tensor) -> float:
    if actual.shape != recorded.shape:
        raise DataError(
            f"recorded shape {tuple(recorded.shape)}, computed {tuple(actual.shape)}", hint="is this run of this model?"
        )
    return float((actual - recorded).abs().max())


def floor_of(floors: Mapping[str, Mapping[str, Any]], family: str, run: str) -> dict[str, float]:
    """Noise floor of a run: its own, and for quantities it lacks the largest of its family."""
    own = floors.get(f"{family}/{run}", {})
    kin = [v for k, v in floors.items() if k.startswith(f"{family}/")]
    return {q: float(own[q] if q in own else max((k[q] for k in kin if q in k), default=0.0)) for q in QUANTITIES}


def _adapter(path: Path) -> Adapter:
    import transformers

    config = json.loads((path / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    model = cls.from_pretrained(path, dtype=torch.float32)
    return Adapter(model.eval())


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(
            f"{path} does not exist", hint="DIR/FAMILY/{model, inputs.safetensors, golden_RUN.json/.safetensors}"
        )
    return path


def runs_in(root: Path, family: str | None = None, run: str | None = None) -> list[tuple[Path, str]]:
    """(family folder, run) pairs found under ``root``.

    Raises:
        DataError: none matches.
    """
    found = [
        (path.parent, path.stem.removeprefix("golden_"))
        for path in sorted(root.glob("*/golden_*.json"))
        if family in (None, path.parent.name) and run in (None, path.stem.removeprefix("golden_"))
    ]
    if not found:
        raise DataError(
            f"no recorded run under {root} (family {family or 'any'}, run {run or 'any'})",
            hint="expected DIR/FAMILY/golden_RUN.json",
        )
    return found


def render(result: Comparison) -> str:
    verdict = "ok" if result.passed else "BEYOND TOLERANCE"
    lines = [f"{result.family}/{result.run}: {verdict}"]
    same = "equal" if result.ids == result.want_ids else f"DIFFER: recorded {result.want_ids}, computed {result.ids}"
    lines.append(f"  {'token ids':<20} {same}; LRP targets that differ: {result.targets_differ}")
    for quantity, worst in result.worst.items():
        multiple = result.multiple(quantity)
        mark = "" if multiple <= TOLERANCE else "  <-- beyond"
        lines.append(
            f"  {quantity:<20} {worst:10.3e}  {multiple:7.2f} x floor  ({result.count[quantity]} values){mark}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m limelight.golden", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("dir", type=Path, help="folder laid out as FAMILY/golden_RUN.json")
    parser.add_argument("--family", help="only this family")
    parser.add_argument("--run", help="only this run")
    args = parser.parse_args(argv)
    try:
        floors = json.loads(_existing(args.dir / "noise_floor.json").read_text())
        results = []
        for folder, run in runs_in(args.dir, args.family, args.run):
            results.append(compare(folder, run, floors))
            print(render(results[-1]), flush=True)
    except (LimelightError, KeyError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = [f"{r.family}/{r.run}" for r in results if not r.passed]
    print(
        f"{len(results) - len(failed)} of {len(results)} recorded runs reproduced within {TOLERANCE:.0f} x the noise floor"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
