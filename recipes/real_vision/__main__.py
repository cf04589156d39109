"""``python -m recipes.real_vision``: train smol-vision, going on where the last run stopped, and write it into the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from limelight.errors import LimelightError
from recipes.real_vision.cutouts import home
from recipes.real_vision.ship import ship
from recipes.real_vision.train import Plan, run


def main(argv: Sequence[str] | None = None) -> int:
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m recipes.real_vision", description="Train smol-vision.")
    parser.add_argument("--scenes", type=int, default=plan.scenes, help="scenes to train on (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=plan.steps, help="steps with the language model (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=plan.batch, help="scenes per step (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-ship", action="store_true", help="leave the package as it is")
    args = parser.parse_args(argv)
    plan = replace(plan, scenes=args.scenes, steps=args.steps, batch=args.batch, device=args.device)
    print(f"state: {home()}", file=sys.stderr)
    try:
        training = run(plan)
        if not args.no_ship:
            print(ship(training))
    except LimelightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
