"""Every private name that the library uses exists in the installed releases, and one that does not is named."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch import nn

from limelight import compat
from limelight.errors import IncompatibleError
from tests import sources
from tests.sources import SRC, tree_of
from tests.tiny import llava

ROOT = Path(__file__).parents[1]


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been checked yet."""
    monkeypatch.setattr(compat, "_FOUND", set())


@pytest.mark.parametrize("name", compat.PRIVATE)
@pytest.mark.usefixtures("unseen")
def test_a_private_name_is_there(name: str) -> None:
    compat.require(name)
    assert name in compat._FOUND


@pytest.mark.parametrize("name", compat.PARTS)
def test_a_part_is_there(name: str) -> None:
    assert getattr(compat, name) is not None


@pytest.mark.parametrize("how", ["attribute", "parameter", "code"])
@pytest.mark.parametrize(
    "owner", ["transformers:GenerationMixin.generate", "torch.nn:Module.forward_gone", "torch.gone:A"]
)
@pytest.mark.usefixtures("unseen")
def test_a_missing_name_is_reported_with_the_release(monkeypatch: pytest.MonkeyPatch, how: Any, owner: str) -> None:
    if how == "attribute" and "generate" in owner:
        owner = "transformers:GenerationMixin"
    monkeypatch.setattr(compat, "PRIVATE", {"_gone": compat.Private(owner, how)})
    with pytest.raises(IncompatibleError) as caught:
        compat.require("_gone")
    library = owner.partition(":")[0].partition(".")[0]
    installed = {"transformers": transformers.__version__, "torch": torch.__version__}[library]
    for said in (library, installed, "_gone", compat.SUPPORTED[library]):
        assert said in caught.value.message
    assert compat.SUPPORTED[library] in caught.value.hint


@pytest.mark.parametrize("where", ["transformers.activations", "transformers.models.gone.modeling_gone"])
def test_a_missing_part_is_reported_with_the_release(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(compat, "PARTS", {"GONE": where})
    with pytest.raises(IncompatibleError, match=rf"{transformers.__version__} has no 'GONE' in {where}"):
        _ = compat.GONE


def test_no_other_name_is_invented() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = compat.nothing


@pytest.mark.usefixtures("unseen")
def test_decoding_stops_where_the_contract_of_generate_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in transformers 5.24, where the argument past_key_values is called cache."""
    model = llava()

    def other(self: Any, input_ids: Any, next_sequence_length: Any = None, cache: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(transformers.GenerationMixin, "prepare_inputs_for_generation", other)
    with pytest.raises(IncompatibleError, match="'is_first_iteration'"):
        compat.next_inputs(model, torch.ones(1, 2, dtype=torch.long), {}, count=1, first=False)
    with pytest.raises(IncompatibleError, match="'past_key_values'"):
        compat.prefill(model, torch.ones(1, 2, dtype=torch.long), None, {})


def test_the_supported_ranges_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [Requirement(r) for r in (*project["dependencies"], *project["optional-dependencies"]["deploy"])]
    ranges = {r.name: r.specifier for r in listed}
    for library, supported in compat.SUPPORTED.items():
        assert ranges[library] == SpecifierSet(supported)
    oldest = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    (pinned,) = (line.partition("==")[2] for line in oldest if line.startswith("transformers=="))
    lower = next(s.version for s in ranges["transformers"] if s.operator == ">=")
    assert SpecifierSet(f"=={lower}.*").contains(pinned)


# --- what would change results without an error --------------------------------------------------------------------


def test_generate_sets_what_is_read_of_its_config_and_cache() -> None:
    model, seen = llava(), {}

    def method(
        model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **kw: Any
    ) -> Any:
        seen.update(pad=compat.pad_token(generation_config), mask=compat.mask_length(generation_config))
        seen.update(own=compat.is_user_cache(kw["past_key_values"]), left=kw.get("attention_mask"))
        return input_ids

    ids = torch.tensor([[5, 6, 7]])
    options: dict[str, Any] = {"max_new_tokens": 2, "pad_token_id": 3, "custom_generate": method}
    model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert seen["pad"].item() == 3
    assert seen["own"] is False
    assert (seen["mask"] == 3) == (seen["left"] is None)
    model.generate(ids, past_key_values=transformers.DynamicCache(config=model.config.get_text_config()), **options)
    assert seen["own"] is True


def test_the_attention_function_of_one_config_is_set_and_put_back() -> None:
    config = llava().model.language_model.config
    before = compat.attention_implementation(config)
    assert compat.names_attention(config)
    assert compat.swap_attention_implementation(config, "limelight") == before
    assert compat.attention_implementation(config) == "limelight"
    assert compat.swap_attention_implementation(config, before) == "limelight"
    assert compat.attention_implementation(config) == before


def test_compiled_modules_are_seen_through() -> None:
    inner = nn.Linear(2, 2)
    assert vars(inner).get(compat.COMPILED_CALL) is None
    assert compat.uncompiled_module(torch.compile(inner, backend="eager")) is inner
    assert compat.uncompiled_module(inner) is None
    forward = inner.forward
    compiled, x = torch.compile(forward, backend="eager"), torch.ones(1, 2)
    assert compat.uncompiled_function(compiled) not in (None, compiled)
    assert torch.equal(compat.uncompiled_function(compiled)(x), inner(x))
    assert compat.uncompiled_function(forward) is None
    inner.compile(backend="eager")
    assert vars(inner).get(compat.COMPILED_CALL) is not None


def test_hooks_and_writes_are_counted() -> None:
    module = nn.Linear(2, 2)
    assert compat.count_hooks(module) == 0
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None)
    assert compat.count_forward_hooks(module) == 2
    module.register_full_backward_hook(lambda *_: None)
    assert compat.count_hooks(module) == 3
    before = compat.version_of(module.weight)
    with torch.no_grad():
        module.weight.add_(1)
    assert compat.version_of(module.weight) == before + 1


def test_accelerates_hook_is_found() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    module, hook = nn.Linear(2, 2), hooks.ModelHook()
    assert compat.accelerate_hook(module) is None
    hooks.add_hook_to_module(module, hook)
    assert compat.accelerate_hook(module) is hook


# --- nothing of the kind elsewhere ---------------------------------------------------------------------------------

# Of other libraries: the standard library's way to end a process, and the fingerprint of datasets.
ELSEWHERE = {"_exit", "_fingerprint"}
# What a subclass of ours overrides.
DECLARED = {"_supports_sdpa", "_supports_flash_attn", "_supports_attention_backend", "get_possibly_dynamic_module"}
FILES = [p for p in sources.FILES if p != SRC / "compat.py"]


def owned(tree: ast.Module) -> set[str]:
    """Private names that a file defines: functions, classes, attributes of its own objects, fields, tables."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            found.add(node.attr)
    return found


def private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name.isidentifier()


def foreign(tree: ast.Module) -> Iterator[str]:
    """Private names that a file reads or writes on objects that are not its own; by getattr and the like, too."""
    mine = owned(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in mine:
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        ):
            yield from (a.value for a in node.args[1:2] if isinstance(a, ast.Constant) and private(a.value))


def test_nothing_private_is_used_elsewhere() -> None:
    own = {name for path in FILES for name in owned(tree_of(path))}
    for path in FILES:
        tree = tree_of(path)
        assert not {n for n in foreign(tree) if n not in own | ELSEWHERE}, path
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} | strings
        assert not names & (compat.PRIVATE.keys() - DECLARED - {"past_key_values"}), path


def test_submodules_are_imported_by_compat_alone() -> None:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                assert not module.startswith(("transformers.", "accelerate.", "peft.")), f"{path} imports {module}"
                private_part = module.startswith("torch") and any(map(private, module.split(".")))
                assert not private_part, f"{path} imports {module}"


def test_every_name_of_the_tables_is_used() -> None:
    own = (SRC / "compat.py").read_text()
    body = own[own.index("def pad_token") :]
    text = body + "".join(p.read_text() for p in FILES)
    assert not [n for n in (*compat.PRIVATE, *compat.PARTS) if n not in text]
