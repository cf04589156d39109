"""What the app does with a question: the same answers as the library, as they grow; then one page."""

from __future__ import annotations

import threading

import pytest
from PIL import Image

import limelight
from limelight.app.backend import Backend, Progress, Question
from limelight.errors import LimelightError, MediaError, PromptError, SettingError
from tests.report.examples import tone
from tests.report.test_page import data_of
from tests.tiny import audio_processor, vision_processor
from tests.zoo import ZOO

ASK = "is there a cup ?"
PICTURE = Image.new("RGB", (40, 30), (200, 120, 40))
SETTINGS = {"max_new_tokens": 5}


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend(limelight.wrap(ZOO["llava"].build(), vision_processor()))


def question(*names: str, words: str = ASK, media: dict[str, list[object]] | None = None) -> Question:
    return Question(
        words, {"image": [PICTURE]} if media is None else media, [limelight.strategy(n) for n in names], SETTINGS
    )


def plain(backend: Backend, name: str) -> limelight.Generation:
    return limelight.generate(
        backend.adapter, messages=ASK, media={"image": PICTURE}, strategy=name, relevance=False, **SETTINGS
    )


def test_words_come_with_their_shares_and_then_the_page(backend: Backend) -> None:
    told = list(backend.ask(question("greedy", "relevance-contrastive")))
    grown = [len(p.answers[0].steps) for p in told if len(p.answers) == 1]
    assert grown == sorted(grown)
    assert grown[-1] == 5
    assert all(s.contributions for p in told for a in p.answers for s in a.steps)
    last = told[-1]
    pages = [data_of(p.page)["cases"][0]["columns"] for p in told if p.page]
    assert [len([c for c in page if c["name"] != "decision"]) for page in pages] == [1, 2]  # it grows by an answer
    assert last.page
    for answer, name in zip(last.answers, ("greedy", "relevance-contrastive"), strict=True):
        assert (answer.strategy, answer.token_ids) == (name, plain(backend, name).token_ids)
    columns = data_of(last.page)["cases"][0]["columns"]
    assert [c["name"] for c in columns][:2] == ["greedy", "relevance-contrastive"]
    differ = last.answers[0].token_ids != last.answers[1].token_ids
    assert [c["name"] for c in columns][2:] == (["decision"] if differ else [])
    assert all("h" in w and "c" in w for c in columns[:2] for w in c["words"])


def test_what_it_can_be_shown(backend: Backend) -> None:
    assert backend.modalities == ("image",)


def test_without_a_meter_the_page_has_the_heat_all_the_same(backend: Backend) -> None:
    told = list(Backend(backend.adapter, meter=False).ask(question("greedy")))
    assert not any(s.candidates for s in told[-2].answers[0].steps)
    assert told[-1].answers[0].token_ids == plain(backend, "greedy").token_ids
    assert all("h" in w for w in data_of(told[-1].page)["cases"][0]["columns"][0]["words"])


def test_a_sound() -> None:
    backend = Backend(limelight.wrap(ZOO["qwen2_audio"].build(), audio_processor()))
    assert backend.modalities == ("audio",)
    asked = Question("what do you hear ?", {"audio": [tone(0.5, 16000)]}, [limelight.greedy()], SETTINGS)
    page = data_of(list(backend.ask(asked))[-1].page)["cases"][0]
    assert [v["kind"] for v in page["views"]] == ["audio"]
    assert page["media"]["sounds"][0]["seconds"] == 0.5
    assert all(w["sh"]["audio"] > 0 for w in page["columns"][0]["words"])


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (question("greedy", words=" "), PromptError, "the question is empty"),
        (question("greedy", media={}), PromptError, "has no media"),
        (question("greedy", media={"image": ["/nowhere/x.png"]}), MediaError, "x.png"),
    ],
)
def test_what_it_refuses(backend: Backend, asked: Question, error: type[LimelightError], said: str) -> None:
    with pytest.raises(error, match=said):
        list(backend.ask(asked))


def test_a_decoding_error_reaches_its_caller_and_the_backend_stays_usable(backend: Backend) -> None:
    wrong = Question(ASK, {"image": [PICTURE]}, [limelight.strategy("dola", layers=(90, 91))], SETTINGS)
    with pytest.raises(SettingError):
        list(backend.ask(wrong))
    assert list(backend.ask(question("greedy")))[-1].page


def test_who_leaves_frees_the_desk(backend: Backend) -> None:
    asking = backend.ask(question("greedy"))
    for told in asking:
        if told.answers[0].steps:
            break
    asking.close()
    assert not [t for t in threading.enumerate() if t.name == "limelight-app"]
    assert list(backend.ask(question("greedy")))[-1].page


def test_two_callers_take_turns(backend: Backend) -> None:
    found: dict[str, Progress] = {}

    def ask(name: str) -> None:
        found[name] = list(backend.ask(question(name)))[-1]

    threads = [threading.Thread(target=ask, args=(n,)) for n in ("greedy", "meter", "m3id")]
    for t in threads:
        t.start()
    for t in threads:
        t.join(200)
    for name, told in found.items():
        assert told.answers[0].token_ids == plain(backend, name).token_ids
