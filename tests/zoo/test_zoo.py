"""Every row of the zoo is what it says: its prompt, its traits, and a network lively enough to tell right from "
"wrong."""

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
import transformers
from torch import nn

from . import FOUNDATION, UNBUILDABLE, ZOO, Tiny
from .base import Model, Tensors
from .encoder_decoder import PAIRED
from .traits import FACTS, facts, observed, sees_ahead, stream

ROWS = [pytest.param(row, id=name) for name, row in ZOO.items()]
every_row = pytest.mark.parametrize("row", ROWS)


@lru_cache(maxsize=4)
def built(name: str) -> Model:
    return ZOO[name].build()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def other_media(inputs: Tensors) -> Tensors:
    noise = torch.Generator().manual_seed(7)
    return {
        k: v + torch.randn(v.shape, generator=noise, dtype=v.dtype) if v.is_floating_point() else v
        for k, v in inputs.items()
    }


def test_every_name_is_known() -> None:
    assert set(FOUNDATION) <= set(ZOO)
    assert not set(UNBUILDABLE) & set(ZOO)
    assert all(row.name == name for name, row in ZOO.items())


@pytest.mark.skipif(not transformers.__version__.startswith("5.23."), reason="the tables are those of 5.23")
def test_every_family_of_the_tables_has_a_row_or_a_reason() -> None:
    from transformers.models.auto import modeling_auto as auto

    tables = (
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    )
    classes = {type(built(name)).__name__ for name in ZOO} | {type(row.make()).__name__ for row in PAIRED.values()}
    families = {family: name for table in tables for family, name in table.items()}
    missing = {family for family, name in families.items() if name not in classes}
    told = {family for family in missing if family in UNBUILDABLE}
    assert missing == told
    assert set(UNBUILDABLE) - missing == {"glmga", "shieldgemma2", "pp_chart2table"}


@every_row
def test_model_is_tiny_seeded_and_lively(row: Tiny) -> None:
    model, twin = built(row.name), row.build()
    parameters, again = dict(model.named_parameters()), dict(twin.named_parameters())
    assert not model.training
    assert sum(p.numel() for p in parameters.values()) < 300_000
    assert all(p.dtype == torch.float32 and torch.equal(p, again[name]) for name, p in parameters.items())
    for name, p in parameters.items():
        assert p.numel() == 1 or float(p.std()) > 0.01, name


@every_row
def test_logits_are_not_degenerate(row: Tiny) -> None:
    model = built(row.name)
    logits = model(**row.inputs(model)).logits[0]
    assert torch.isfinite(logits).all()
    logits = logits[:, logits[-1] > -1e30]  # Chameleon bars its image codes
    assert 1.0 < float(logits[-1].std()) < 5.0
    assert 0.005 < float(logits[-1].softmax(-1).max()) < 0.9
    assert float(logits.std(0).mean()) > 0.5  # from position to position


@every_row
def test_placeholders_are_where_the_row_says(row: Tiny) -> None:
    model = built(row.name)
    inputs = row.inputs(model)
    assert {m: sum(b - a for a, b, kind in row.spans if kind == m) for m in row.modalities} == dict(row.modalities)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (1, inputs["input_ids"].shape[1])
    entering = [stream(row, model, x)[0] for x in (inputs, other_media(inputs))]
    moved = (entering[0] - entering[1]).abs().amax(-1).flatten(0, -2).amax(0) > 1e-6
    inside = {i for a, b, _ in row.spans for i in range(a, b)}
    assert row.constant <= inside
    if "reads_before_layers" in row.marks:
        assert not inside
        return
    heard = set(moved.nonzero().flatten().tolist())
    assert heard == inside - row.constant or ("discrete" in row.marks and heard and heard < inside - row.constant)


@every_row
def test_media_reach_the_last_position(row: Tiny) -> None:
    model = built(row.name)
    inputs = row.inputs(model)
    change = (model(**inputs).logits - model(**other_media(inputs)).logits)[0, -1]
    assert float(change.abs().max()) > 0.1


@every_row
def test_greedy_generation(row: Tiny) -> None:
    model = built(row.name)
    inputs = row.inputs(model)
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    prompt = inputs["input_ids"]
    assert torch.equal(out[:, : prompt.shape[1]], prompt)
    assert out.shape == (1, prompt.shape[1] + 3)
    assert int(out[0, prompt.shape[1]]) == int(model(**inputs).logits[0, -1].argmax())


@every_row
def test_batch_equals_its_rows_alone(row: Tiny) -> None:
    model = built(row.name)
    if row.batch is None:
        assert row.no_batch
        pytest.skip(row.no_batch)
    batch = row.batch(model)
    alone = [row.inputs(model, row=i) for i in (0, 1)]
    lengths = [len(x["input_ids"][0]) for x in alone]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert lengths[0] != lengths[1]
    logits = model(**batch).logits
    for i, (single, length) in enumerate(zip(alone, lengths, strict=True)):
        assert torch.equal(batch["input_ids"][i, -length:], single["input_ids"][0])
        torch.testing.assert_close(logits[i, -1], model(**single).logits[0, -1], atol=2e-4, rtol=2e-4)
        for start, stop, _ in row.batch_spans[i]:
            assert len(set(batch["input_ids"][i, start:stop].tolist())) == 1


@every_row
def test_float64(row: Tiny) -> None:
    if "no_float64" in row.marks:
        pytest.skip(row.notes)
    model = row.build()
    single = model(**row.inputs(model)).logits
    model.double()
    double = model(**row.inputs(model)).logits
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.clamp(min=-1e6).float(), single.clamp(min=-1e6), atol=2e-3, rtol=2e-3)


@every_row
def test_traits_are_what_the_modules_show(row: Tiny) -> None:
    model = built(row.name)
    assert isinstance(model.get_submodule(row.decoder).layers, nn.ModuleList)
    assert row.traits - {"prefix_lm"} == observed(row, model)


@every_row
def test_mask_is_causal_unless_prefix_lm(row: Tiny) -> None:
    assert sees_ahead(row, built(row.name)) == ("prefix_lm" in row.traits)


@every_row
def test_text_stack_is_called_as_the_marks_say(row: Tiny) -> None:
    assert row.marks & FACTS == facts(row, built(row.name))
