"""python -m tools.try_wheel: the documentation's install lines, each in a fresh environment made from the wheel in dist.

Every extra is installed alone with its constraints, and then does what it is for. A few minutes each; needs a package index.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASK = [
    "generate",
    "demo-vision",
    "--image",
    "example:hat",
    "-p",
    "Is there a hat in the picture?",
    "--max-new-tokens",
    "4",
]
# extra -> what is run afterwards: arguments of limelight, or Python code
TRIES: dict[str, list[list[str] | str]] = {
    "": [["--version"], ASK, ["demo", "--out", "demo"]],
    "audio": [["transcribe", "{cow}", "--model", "demo-audio"], ["demo", "--audio", "--out", "demo"]],
    "video": [
        "import av, num2words; from limelight.media.video import read_video",
        ["generate", "demo-video", "--video", "example:pizza-film", "-p", "Describe the film in order."],
    ],
    "server": ["import limelight.server.app, uvicorn"],
    "app": ["import limelight.app.blocks"],
    "pandas": [
        "import limelight; print(limelight.attribute(limelight.load('demo-vision'), messages='A hat?', media=limelight.example('hat')).to_pandas().head(2))"
    ],
}


def readme_lines() -> str:
    """README's first Python block."""
    found = re.search(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    if found is None:
        raise SystemExit("README has no Python block")
    return found[1]


def tried(wheel: Path, extra: str, constraints: Path) -> str:
    """Install one extra into a fresh environment in an empty folder and run its commands; return what README's lines print."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        venv.create(home / "env", with_pip=True)
        python = home / "env" / "bin" / "python"

        def run(*arguments: str) -> str:
            done = subprocess.run([str(python), *arguments], cwd=home, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(
                    f"[{extra or 'core'}] {' '.join(arguments)[:200]}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
                )
            return done.stdout

        began = time.perf_counter()
        run(
            "-m",
            "pip",
            "install",
            "-qq",
            "--disable-pip-version-check",
            f"{wheel}[{extra}]" if extra else str(wheel),
            "-c",
            str(constraints),
        )
        count = len(run("-m", "pip", "list", "--disable-pip-version-check").splitlines()) - 2
        print(f"[{extra or 'core'}] {count} packages in {time.perf_counter() - began:.0f} s", flush=True)
        for one in TRIES[extra]:
            began = time.perf_counter()
            if isinstance(one, str):
                run("-W", "ignore", "-c", one)
            else:
                cow = run("-c", "import limelight; print(limelight.example('cow'))").strip()
                run("-m", "limelight", *(cow if a == "{cow}" else a for a in one))
            print(
                f"    {one if isinstance(one, str) else ' '.join(one)}: {time.perf_counter() - began:.1f} s", flush=True
            )
        return run("-c", readme_lines()) if not extra else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"))
    parser.add_argument("--only", nargs="*", choices=[e or "core" for e in TRIES], help="some of the extras")
    args = parser.parse_args()
    wheels = sorted((ROOT / "dist").glob("limelight-*.whl"))
    if not wheels:
        sys.exit("no wheel in dist: make wheel")
    for extra in TRIES:
        if args.only and (extra or "core") not in args.only:
            continue
        told = tried(wheels[-1], extra, args.constraints.resolve())
        if told:
            print(f"README's lines:\n{told}", flush=True)


if __name__ == "__main__":
    main()
