"""The program as a whole: help, errors, exit codes, what is imported when."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import wave
from pathlib import Path

import pytest
import torch

from limelight.cli import main
from limelight.errors import SettingError
from tests.cli.conftest import Run
from tests.cli.tiny_llava import save_checkpoint

MINE = ("generate", "attribute", "demo", "models", "strategies")


def flat(text: str) -> str:
    """Without colour and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def test_help_names_every_command(run: Run) -> None:
    told = flat(run("--help").stdout)
    assert all(name in told for name in MINE)
    assert "limelight demo" in told


@pytest.mark.parametrize("command", MINE)
def test_every_command_has_real_examples(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    lines = [line.strip("│ ") for line in result.stdout.splitlines()]
    examples = [line for line in lines if line.startswith(f"limelight {command}")]
    assert len(examples) >= (1 if command == "strategies" else 2)
    options = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", "\n".join(lines[lines.index("Examples") :])))
    known = {o for p in commands()[command].params for o in (*p.opts, *p.secondary_opts)}
    others = {o for c in commands().values() for p in c.params for o in p.opts}
    assert options - known - {"--help"} <= others if command == "strategies" else options <= known | {"--help"}


def commands() -> dict[str, object]:
    import typer

    return dict(typer.main.get_command(main.app).commands)


def test_help_is_light() -> None:
    code = "import sys; from limelight.cli import main; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert result.stdout.strip() == "[]"


def test_module_and_version() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "limelight", "--version"], capture_output=True, text=True, check=True, timeout=240
    )
    assert re.fullmatch(r"limelight \d+\.\d+\.\d+\S*\n", result.stdout)


def test_a_command_whose_file_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.setattr(main, "app", typer.Typer())
    monkeypatch.setattr(main, "COMMANDS", ("nothing_here", "strategies"))
    main._register()
    assert [c.name for c in main.app.registered_commands] == ["strategies"]


def wrong_inputs(tmp_path: Path, photo: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    corrupt, cut, empty, sound = (tmp_path / n for n in ("corrupt.png", "cut.png", "empty.png", "tone.wav"))
    corrupt.write_bytes(b"this is no picture")
    cut.write_bytes(photo.read_bytes()[: len(photo.read_bytes()) // 2])
    empty.write_bytes(b"")
    with wave.open(str(sound), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(b"\x00\x01" * 1600)
    return {
        "no media": (("--strategy", "lime"), "requires an image, audio or video"),
        "missing": (("--image", tmp_path / "none.png"), "there is no file"),
        "corrupt": (("--image", corrupt), "not an image that can be read"),
        "cut short": (("--image", cut), "corrupt"),
        "empty file": (("--image", empty), "0 bytes"),
        "sound as picture": (("--image", sound), "tone.wav is audio"),
        "sound to a vision model": (("--audio", sound), "takes image, the messages contain audio"),
        "a URL": (("--image", "https://example.org/x.png"), "is a URL"),
        "a folder": (("--image", tmp_path), "is a folder"),
        "empty prompt": (("--image", photo, "--prompt", "  "), "the prompt is empty"),
        "unknown strategy": (("--image", photo, "--strategy", "limes"), "unknown strategy"),
        "unknown setting": (("--image", photo, "--strategy", "lime", "--set", "lrr=1"), "no setting 'lrr'"),
        "setting out of range": (("--image", photo, "--strategy", "lime", "--set", "lr=-1"), "lr must be positive"),
        "unwritable overlay": (("--image", photo, "--overlay", tmp_path / "none" / "o.png"), "no folder"),
        "overlay of no kind": (("--image", photo, "--overlay", "o.txt"), "cannot write"),
        "html of no kind": (("--image", photo, "--html", "o.pdf"), "cannot write"),
        "word without overlay": (("--image", photo, "--word", "cup"), "--word chooses"),
        "idle temperature": (("--image", photo, "--temperature", "0.5"), "no effect"),
        "nothing to draw": (("--image", photo, "--no-relevance", "--html", tmp_path / "o.html"), "nothing to draw"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        "no media", "missing", "corrupt", "cut short", "empty file", "sound as picture", "sound to a vision model", "a URL",
        "a folder", "empty prompt", "unknown strategy", "unknown setting", "setting out of range", "unwritable overlay",
        "overlay of no kind", "html of no kind", "word without overlay", "idle temperature", "nothing to draw",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # PIL's open file of a picture cut short
def test_bad_input_is_reported_with_a_hint(run: Run, checkpoint: Path, photo: Path, tmp_path: Path, kind: str) -> None:
    arguments, message = wrong_inputs(tmp_path, photo)[kind]
    prompt = () if "--prompt" in arguments else ("--prompt", "what is this ?")
    result = run("generate", checkpoint, "--max-new-tokens", 2, "--json", *prompt, *arguments)
    assert result.exit_code == 2, result.output
    assert message in flat(result.stderr)
    assert "error:" in result.stderr
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    del result
    gc.collect()


def test_a_model_that_cannot_be_used(run: Run, photo: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    ask = ("--image", photo, "--prompt", "what ?")
    assert "there is no folder" in flat(run("generate", tmp_path / "none", *ask).stderr)
    (tmp_path / "bare").mkdir()
    assert "cannot load a model" in flat(run("generate", tmp_path / "bare", *ask).stderr)
    text = tmp_path / "text"
    LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(text)
    told = run("generate", text, *ask)
    assert told.exit_code == 2
    assert "hint:" in told.stderr
    broken = save_checkpoint(tmp_path / "nan")
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if n.endswith("mlp.down_proj.weight"))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    told = run("generate", broken, *ask)
    assert told.exit_code == 2
    assert "contains NaN or infinity" in flat(told.stderr)


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_lets_the_error_through(run: Run, checkpoint: Path, photo: Path, place: str) -> None:
    arguments = ["generate", checkpoint, "--image", photo, "--prompt", "x", "--seed", "1"]
    arguments.insert(0 if place == "before" else len(arguments), "--debug")
    assert isinstance(run(*arguments).exception, SettingError)
