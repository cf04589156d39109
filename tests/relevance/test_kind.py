"""Adding a kind of layer is adding a file: it is found, its rule is in every composite, and both directions use it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from limelight.errors import SettingError
from limelight.relevance import layers
from limelight.relevance.classify import classify_modules, layer_kinds
from limelight.relevance.composites import ATTN_LRP, COMPOSITES, Composite
from limelight.relevance.kind import hooked, replaced
from tests.tiny import built

HERE = Path(__file__).parent
FOLDER = Path(layers.__file__).parent
PAGE = HERE.parents[1] / "docs" / "extend.md"


def test_one_kind_per_file_named_like_it_and_tested() -> None:
    names = {kind.name for kind in layer_kinds()}
    assert names == {p.stem for p in FOLDER.glob("*.py") if re.search(r"^KIND = ", p.read_text(), re.MULTILINE)}
    tests = "".join(p.read_text() for p in (HERE / "layers").glob("test_*.py"))
    for name in names:
        assert name in tests and name in (layers.__doc__ or "")
    assert all(set(c.rules) in (names, set()) for c in COMPOSITES.values())


@pytest.mark.parametrize("name", ["llava", "gemma3n", "glm4v_moe", "qwen3_5", "lfm2_vl", "nemotron_h_omni", "blip2"])
def test_every_module_is_of_one_kind(name: str) -> None:
    adapter = built(name)
    matches = [m for m in classify_modules(adapter.decoder) if m.module is not adapter.decoder]
    matches = [m for m in matches if m.kind != "residual"]  # every layer, whatever else it may be
    assert len({id(m.module) for m in matches}) == len(matches)
    names = dict(adapter.decoder.named_modules())
    assert all(names[m.name] is m.module for m in matches)


def test_a_rule_for_a_kind_that_does_not_exist() -> None:
    with pytest.raises(SettingError, match=r"\['gated'\]") as caught:
        Composite("mine", {**ATTN_LRP.rules, "gated": ATTN_LRP.rules["gated_mlp"]})
    assert "gated_mlp" in caught.value.hint


def test_what_is_put_on_comes_off() -> None:
    module = nn.Identity()
    undo = replaced(module, lambda x: x + 1)()
    inner = replaced(module, lambda x: x + 2)()
    assert module(torch.zeros(1)) == 2
    inner()
    assert module(torch.zeros(1)) == 1
    undo()
    assert "forward" not in vars(module)
    undo = hooked(lambda: module.register_forward_hook(lambda *_: torch.ones(1)))()
    assert module(torch.zeros(1)) == 1
    undo()
    assert module(torch.zeros(1)) == 0


ADDED = """
import sys
from limelight.relevance import layers
layers.__path__.append(sys.argv[1])
import torch
from limelight.errors import UnknownKindError
from limelight.relevance.composites import ATTN_LRP
from tests.relevance.forward.helpers import backward_sums, close, prefilled
from tests.tiny import fresh
from tests.wide import prompt, widen
exec(sys.argv[2])

torch.manual_seed(0)
adapter = fresh("llava", torch.float64)
for layer in adapter.decoder.layers:
    layer.post_attention_layernorm = DynamicTanh(32).double()
try:
    _, call, media = prompt("llava", widen(adapter))
    logits, phi = prefilled(adapter, call, media)
except UnknownKindError as error:
    print("unknown", error.message)
else:
    own, want = backward_sums(adapter, call, media, [5, 77], ATTN_LRP)
    close(logits[0], own)
    close(phi[:, 0, [5, 77]], want)
    print("known")
"""


def test_a_file_in_the_folder_is_all_it_takes(tmp_path: Path) -> None:
    """The file is the documentation's own example; without it the layer is of no known kind."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module, file = (next(b for b in blocks if part in b) for part in ("class DynamicTanh", "KIND = LayerKind"))
    said = []
    for text in ("", file):
        (tmp_path / "dynamic_tanh.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", ADDED, str(tmp_path), module],
            capture_output=True, text=True, timeout=120, cwd=HERE.parents[1],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip())
    assert said[0].startswith("unknown layers.0.post_attention_layernorm") and said[1] == "known"
