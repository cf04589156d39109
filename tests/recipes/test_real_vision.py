"""The recipe of smol-vision: cut-outs and splits, scenes, text; and a run of every stage at toy size that can be stopped."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from recipes.demo_vision.text import Packer
from recipes.real_vision import build, cutouts, data, questions, ship, train
from recipes.real_vision.__main__ import main
from recipes.real_vision.cutouts import CutOut, collect, split
from recipes.real_vision.model import attach, changes, decode
from recipes.real_vision.nouns import CANDIDATES, NOUNS, UNRECOGNISED, noun_of
from recipes.real_vision.scenes import LOOKS, POSITIONS, SIDE, THEMES, compose, draw
from recipes.real_vision.text import KINDS, NO, YES, Company, blocks, caption, question, says
from recipes.real_vision.warm import labels
from tests.models.checkpoints import smol

import limelight
from limelight.errors import DataError
from limelight.models.checkpoints.smol_vision import load

PATHS = {
    "animal": "animals/mammals/dogs/dog-{}", "bird": "animals/birds/crow{}", "cake": "food/dessert/cake{}",
    "hat": "clothes/hats/fedora{}",
}  # fmt: skip
NAMES = ("alpha", "beta", "gamma", "delta", "omega")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with tiny published models, and packages with coloured shapes for cut-outs."""
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "cache"))
    smol.write(tmp_path / "cache")
    for key, package in cutouts.PACKAGES.items():
        folder = cutouts.home() / "packages" / package.name / package.folder
        folder.mkdir(parents=True)
        for place in PATHS.values() if key == "tuxpaint" else ():
            for number, name in enumerate(NAMES):
                _shape(folder / f"{place.format(name)}.png", number)
    monkeypatch.setattr(cutouts, "unpacked", lambda key: cutouts.home() / "packages" / cutouts.PACKAGES[key].name)
    questions._cutouts.cache_clear()
    questions.picture.cache_clear()
    questions.company.cache_clear()
    return tmp_path


def _shape(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (60, 40))
    drawn = ImageDraw.Draw(image)
    drawn.ellipse((8, 4, 50, 36), (40 * number, 255 - 40 * number, sum(map(ord, str(path.parent.name))) % 255, 255))
    drawn.line((8, 4, 20 + number, 30), (number, 0, 0, 255), 2)
    image.save(path)


def test_nouns_of_paths() -> None:
    assert noun_of("tuxpaint", "animals/birds/crow") == "bird"
    assert noun_of("openclipart", "animals/mammals/horses/cavallo_architetto_franc_01") == "animal"
    assert noun_of("openclipart", "food/pizza_cheese_bw") is None  # black and white
    assert noun_of("tuxpaint", "vehicles/construction/dumper_mirror") is None
    assert noun_of("tuxpaint", "symbols/math/2") is None
    assert set(THEMES) == set(questions.ABOUT) and {n for t in THEMES.values() for n in t} == set(NOUNS)
    assert set(NOUNS) == set(CANDIDATES) - UNRECOGNISED and set(CANDIDATES) > UNRECOGNISED


def _cutouts(noun: str, sizes: list[int]) -> list[CutOut]:
    return [CutOut(noun, Path(f"{s}-{i}"), f"{noun}/{s}", True) for s, n in enumerate(sizes) for i in range(n)]


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [7, 2, 1, 1, 1], [3, 3, 3, 3, 3, 3], [20, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
def test_series_stay_together_and_splits_share_nothing(sizes: list[int]) -> None:
    found = split(_cutouts("hat", sizes), ["hat"])
    kept = {name: found[name]["hat"] for name in cutouts.SPLITS}
    assert sum(map(len, kept.values())) == sum(sizes) and all(kept.values())
    series = {name: {c.series for c in parts} for name, parts in kept.items()}
    assert not series["train"] & series["dev"] and not series["train"] & series["test"]
    assert not series["dev"] & series["test"]
    assert len(kept["train"]) >= max(sizes)


def test_nouns_of_few_series_are_left_out() -> None:
    assert not split(_cutouts("hat", [9, 9, 9]), ["hat"])["train"]


def test_the_same_picture_counts_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _shape(tmp_path / f"animals/birds/{name}.png", 1)
    (tmp_path / "animals/birds/c.png").write_bytes((tmp_path / "animals/birds/a.png").read_bytes())
    _shape(tmp_path / "animals/birds/d.png", 2)
    assert [c.path.stem for c in collect({"tuxpaint": tmp_path})] == ["a", "d"]


def test_packages_missing_from_apt_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    absent = {"x": replace(cutouts.PACKAGES["tuxpaint"], folder="usr/share/nowhere/stamps")}
    monkeypatch.setattr(cutouts, "PACKAGES", absent)
    with pytest.raises(DataError, match="no apt-get on this machine"):
        cutouts.unpacked("x")


def test_scenes_are_repeatable_and_their_boxes_and_cover_true(home: Path) -> None:
    parts = cutouts.all_splits()["train"]
    assert set(parts) == set(PATHS)
    one, two = (draw(parts, random.Random(3), LOOKS["clear"]) for _ in range(2))
    assert one.things == two.things and np.array_equal(np.asarray(one.image), np.asarray(two.image))
    chosen = [parts["bird"][0], parts["hat"][0]]
    scene = compose(chosen, random.Random(0), vary=False)
    assert scene.image.size == (SIDE, SIDE) and scene.cover.shape == (2, POSITIONS, POSITIONS)
    cell = SIDE // POSITIONS
    for thing, cover in zip(scene.things, scene.cover, strict=True):
        left, top, right, bottom = thing.box
        assert 0 <= left < right <= SIDE and 0 <= top < bottom <= SIDE
        rows, columns = np.nonzero(cover > 0.01)
        assert rows.min() >= top // cell and rows.max() <= (bottom - 1) // cell
        assert columns.min() >= left // cell and columns.max() <= (right - 1) // cell
    middles = [t.box[0] + t.box[2] for t in scene.things]
    assert middles == sorted(middles)
    small = compose(chosen, random.Random(0), LOOKS["small"])
    assert all(max(t.box[2] - t.box[0], t.box[3] - t.box[1]) < 90 for t in small.things)


def test_captions_and_questions() -> None:
    assert caption(["animal"]) == "The picture shows an animal."
    assert caption(["bird", "cake", "insect"]) == "The picture shows a bird, a cake and an insect."
    assert question("insect") == "Is there an insect in the picture?"
    assert says("Two birds, a hat and a hatter; boxes. A bird.", ("bird", "hat", "box")) == ["bird", "hat", "box"]
    company = Company([["bird", "hat"], ["bird", "hat"], ["cake", "cup"], ["bird", "cup"], ["flag"]])
    rng = random.Random(0)
    rows = [blocks(["bird", "cake"], company, rng) for _ in range(30)]
    asked = [b for row in rows for b in row[1:]]
    assert sum(b.answer == YES for b in asked) == sum(b.answer == NO for b in asked) == len(asked) / 2
    for b in asked:
        assert (b.answer == YES) == any(question(n) == b.text for n in ("bird", "cake"))
    assert company.absent("adversarial", ["bird"], rng, among=1) == "hat"
    assert company.absent("popular", ["bird"], rng, among=1) in ("cup", "hat")
    assert all(company.absent(kind, ["bird", "hat", "cake", "cup"], rng) == "flag" for kind in KINDS)


def test_positions_are_labelled_by_what_covers_them() -> None:
    cover = torch.zeros(1, data.MOST, 4, dtype=torch.float16)
    cover[0, 0] = torch.tensor([0.9, 0.4, 0.2, 0.0])
    cover[0, 1] = torch.tensor([0.0, 0.5, 0.0, 0.05])
    things = torch.tensor([[7, 3, -1, -1]])
    found = labels(data.Features(torch.zeros(1, 4, 2, dtype=torch.uint8), cover, things), torch.tensor([0]), 9)
    assert found.tolist() == [[7, 3, -100, 9]]


def test_attached_changes_are_what_merging_adds(home: Path) -> None:
    """The model in training and the shipped one say the same."""
    torch.manual_seed(0)
    model, tokenizer = build.published()
    model.eval()
    attached = attach(model)
    for layer in attached.values():
        torch.nn.init.normal_(layer.b, std=0.1)
    packer = build.packer(tokenizer)
    values = torch.rand(1, POSITIONS**2, 1280)
    company = Company([["bird", "hat"], ["cake"]])
    packed = packer([blocks(["bird", "hat"], company, random.Random(0))])
    with torch.no_grad():
        trained = decode(model, packed, values)
    other, _ = build.published()
    other.eval().model.multi_modal_projector.load_state_dict(model.model.multi_modal_projector.state_dict())
    from limelight.models.checkpoints.smol_vision import merge

    merge(other, changes(attached))
    with torch.no_grad():
        assert torch.allclose(decode(other, packed, values), trained, atol=1e-4)


def _plan() -> train.Plan:
    return train.Plan(scenes=4, held=4, warm_steps=2, steps=4, batch=2, every=1, measured=2)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CHUNK", 2)
    monkeypatch.setattr(data, "BATCH", 2)


def test_every_stage_resumes_where_it_stopped(home: Path, short: None, tmp_path: Path) -> None:
    straight = train.run(_plan(), tmp_path / "straight")
    want = {n: t.clone() for n, t in changes(straight.attached).items()}
    stopped = tmp_path / "stopped"
    torch.manual_seed(0)
    (stopped / "features").mkdir(parents=True)
    made = sorted((tmp_path / "straight" / "features").iterdir())
    assert [p.name for p in made] == ["dev-000.pt", "dev-001.pt", "train-000.pt", "train-001.pt"]
    (stopped / "features" / made[0].name).write_bytes(made[0].read_bytes())
    (stopped / "warm.pt").write_bytes((tmp_path / "straight" / "warm.pt").read_bytes())
    before = (stopped / "features" / made[0].name).stat().st_mtime_ns
    half = _plan()

    class StoppedError(Exception):
        pass

    one = train.Training.one

    def stops(self: train.Training) -> float:
        if self.step == 2:
            raise StoppedError
        return one(self)

    torch.manual_seed(5)  # the same start of the changes as above is not needed: it is kept in the checkpoint
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(train.Training, "one", stops)
        train.run(half, stopped)
    assert (stopped / "features" / made[0].name).stat().st_mtime_ns == before
    again = train.run(half, stopped)
    assert again.step == 4
    for a, b in zip(made, sorted((stopped / "features").iterdir()), strict=True):
        first, second = (torch.load(p, weights_only=True) for p in (a, b))
        assert all(torch.equal(first[k], second[k]) for k in first)
    assert {n: t.shape for n, t in changes(again.attached).items()} == {n: t.shape for n, t in want.items()}
    place = ship.ship(again, tmp_path / "shipped")
    model, _ = load(place, "auto")
    trained = again.projector.state_dict()
    assert all(
        torch.equal(v, trained[n].half().float()) for n, v in model.model.multi_modal_projector.state_dict().items()
    )
    assert sum(p.stat().st_size for p in place.iterdir()) < 15e6
    assert limelight.load(place).modalities == {"image"}


def test_the_command(
    home: Path, short: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ship, "PLACE", home / "shipped")
    monkeypatch.setattr(train, "warm_start", lambda *a, **k: 0.0)
    monkeypatch.setattr(train, "measure", lambda *a, **k: {})
    assert main(["--scenes", "2", "--steps", "1", "--batch", "1", "--device", "cpu", "--no-ship"]) == 0
    assert "step" not in capsys.readouterr().out
    assert (cutouts.home() / "training.pt").is_file() and not (home / "shipped").exists()


def test_questions_are_balanced_and_hints_match_their_kind(home: Path, short: None) -> None:
    model, _ = build.published()
    data.make(cutouts.all_splits()["train"], model.model.vision_tower, cutouts.home() / "features", "train", 4)
    plain = questions.questions("test", "none/clear", 6)
    assert [q.present for q in plain] == [True, False] * 3
    for name in ("E-right", "E-wrong", "C-right", "C-wrong"):
        hinted = questions.questions("test", f"{name}/clear", 6)
        assert [(q.noun, q.present) for q in hinted] == [(q.noun, q.present) for q in plain]
        for q in hinted:
            right = name.endswith("right")
            if name[0] == "E":
                assert q.hint == questions.statement(q.noun, q.present == right)
            else:
                told = next(t for t, words in questions.ABOUT.items() if q.hint == f"The picture is about {words}.")
                assert (q.noun in THEMES[told]) == (q.present == right)
    for q in plain:
        assert (q.noun in q.picture.nouns) == q.present and q.text == question(q.noun)
    for c in questions.captions("test", "E-wrong", 4):
        assert c.hinted not in c.picture.nouns and c.hinted in c.hint
    assert {questions.picture("test", "poor", n).sight for n in range(2)} == {"poor"}
    with pytest.raises(ValueError, match="no cell"):
        questions.questions("test", "none/murky", 1)


def test_large_scenes_have_things_of_the_usual_size(home: Path, short: None) -> None:
    questions.company.cache_clear()
    asked = questions.large_questions("test", 3, 4)
    assert [q.present for q in asked] == [True, False, True, False]
    for q, again in zip(asked, questions.large_questions("test", 3, 4), strict=True):
        assert q.picture.image.size == (3 * SIDE, 3 * SIDE) and q.present == (q.noun in q.picture.nouns)
        assert all(max(t.box[2] - t.box[0], t.box[3] - t.box[1]) < SIDE for t in q.picture.things)
        assert (q.noun, q.picture.things) == (again.noun, again.picture.things)


def test_a_packer_of_another_template(home: Path) -> None:
    _, tokenizer = build.published()
    packer: Packer = build.packer(tokenizer)
    company = Company([["bird", "hat"], ["cake"]])
    packed = packer([blocks(["bird"], company, random.Random(0))])
    text = tokenizer.decode(packed.ids[0])
    assert text.startswith("<|im_start|>user\n" + "<image>" * 25 + "\n")
    assert text.count("<|im_start|>assistant\n") == 5 and text.count("Yes.<|im_end|>") == 2
    counted = packed.labels[0][packed.weights[0] > 0]
    assert tokenizer.decode(counted).startswith("The picture shows a bird.<|im_end|>")
    adapter_text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}],
        chat_template=build_template(), tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    assert adapter_text == "<|im_start|>user\n<image>\nx<|im_end|>\n<|im_start|>assistant\n"


def build_template() -> str:
    from recipes.real_vision.text import TEMPLATE

    return TEMPLATE
