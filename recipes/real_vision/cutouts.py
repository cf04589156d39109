"""Cut-outs: fetched with apt, named, and split into train, dev and test by series."""

from __future__ import annotations

import hashlib
import re
import subprocess
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from limelight.errors import DataError
from limelight.user_cache_dir import user_cache_dir
from recipes.real_vision.nouns import NOUNS, noun_of

SPLITS = ("train", "dev", "test")
SHARES = {"test": 0.22, "dev": 0.14}
LARGEST = 256  # pixels of a cut-out's longer side, as kept
MOST = 16_000_000  # pixels of a file that is opened; a few drawings have more


@dataclass(frozen=True)
class Package:
    """A Debian package: its version, the SHA-256 of its file, and the folder of its pictures."""

    name: str
    version: str
    sha256: str
    folder: str


PACKAGES = {
    "tuxpaint": Package(
        "tuxpaint-stamps-default", "2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "usr/share/tuxpaint/stamps",
    ),
    "openclipart": Package(
        "openclipart-png", "1:0.18+dfsg-19", "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "usr/share/openclipart/png",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CutOut:
    """A picture of one thing on a transparent ground.

    Attributes:
        series: cut-outs of one series (names that differ in their numbers alone) stay in one split.
    """

    noun: str
    path: Path
    series: str
    photograph: bool


def home() -> Path:
    """The recipe's folder in the cache: packages, features, checkpoints."""
    return user_cache_dir() / "recipes" / "real_vision"


def unpacked(key: str) -> Path:
    """The pictures of a package: installed, or fetched and unpacked into the cache.

    Raises:
        DataError: apt is missing or has no such package, or the file is another one.
    """
    package = PACKAGES[key]
    installed = Path("/") / package.folder
    if installed.is_dir():
        return installed
    place = home() / "packages" / package.name
    if not (place / package.folder).is_dir():
        folder = home() / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", f"{package.name}={package.version}"], folder)
        found = sorted(folder.glob(f"{package.name}_*.deb"))
        if not found or hashlib.sha256(found[0].read_bytes()).hexdigest() != package.sha256:
            raise DataError(
                f"{package.name} {package.version} was not fetched as expected",
                hint="its file differs from the one this recipe was written with",
            )
        _run(["dpkg-deb", "-x", str(found[0]), str(place)], folder)
        found[0].unlink()
    return place / package.folder


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DataError(
            f"no {command[0]} on this machine",
            hint=f"on Debian or Ubuntu: apt-get install {' '.join(p.name for p in PACKAGES.values())}",
        ) from error
    if done.returncode:
        raise DataError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}", hint="apt-get update, then again")


def collect(folders: dict[str, Path]) -> list[CutOut]:
    """The cut-outs that show one of the nouns; files of the same bytes, or of the same name and noun, once."""
    out: list[CutOut] = []
    seen: set[str] = set()
    for key, folder in folders.items():
        for path in sorted(folder.rglob("*.png")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            noun = noun_of(key, name)
            if noun is None or _pixels(path) > MOST:
                continue
            same = {hashlib.sha256(path.read_bytes()).hexdigest(), f"{key}/{noun}/{path.stem}/{'cartoon' in name}"}
            if not same & seen:
                series = re.sub(r"[\d_.-]+", "", f"{key}{path.stem}" if key == "openclipart" else f"{key}{name}")
                photograph = key == "tuxpaint" and "cartoon" not in name
                out.append(CutOut(noun, path, f"{noun}/{series}", photograph))
            seen |= same
    return out


def _pixels(path: Path) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        return MOST + 1


def split(cutouts: Sequence[CutOut], nouns: Iterable[str] = NOUNS) -> dict[str, dict[str, list[CutOut]]]:
    """Split -> noun -> cut-outs. Per noun, whole series go to test and dev until they have their share.

    The largest series stays in train. A noun with fewer than four series, or without a cut-out in every split, is left
    out.
    """
    out: dict[str, dict[str, list[CutOut]]] = {name: {} for name in SPLITS}
    by_noun: dict[str, dict[str, list[CutOut]]] = defaultdict(lambda: defaultdict(list))
    for cutout in cutouts:
        by_noun[cutout.noun][cutout.series].append(cutout)
    for noun in nouns:
        series = by_noun.get(noun, {})
        if len(series) < 4:
            continue
        total = sum(map(len, series.values()))
        order = sorted(series, key=lambda s: hashlib.sha256(s.encode()).hexdigest())
        largest = max(order, key=lambda s: len(series[s]))
        rest = [s for s in order if s != largest]
        parts: dict[str, list[CutOut]] = {name: [] for name in SPLITS}
        for name, share in SHARES.items():
            while rest and len(parts[name]) < max(1, round(share * total)):
                fitting = [s for s in rest if len(parts[name]) + len(series[s]) <= max(1, round(share * total))]
                chosen = (fitting or rest)[0]
                rest.remove(chosen)
                parts[name] += series[chosen]
        for s in [largest, *rest]:
            parts["train"] += series[s]
        if all(parts.values()):
            for name in SPLITS:
                out[name][noun] = parts[name]
    return out


@cache
def picture(path: Path) -> Image.Image:
    """A cut-out, RGBA, cropped to what is visible, its longer side at most ``LARGEST`` pixels."""
    image = Image.open(path).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
    image = image.crop(box) if box else image
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return image


def all_splits() -> dict[str, dict[str, list[CutOut]]]:
    """The packages' cut-outs, split; fetched where they are not there yet."""
    return split(collect({key: unpacked(key) for key in PACKAGES}))
