"""A judge behind a recorded OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from limelight.benchmarks.scorers.judge import RUBRIC, ChatJudge, check_template, judged, rated, rating, verdict
from limelight.benchmarks.scorers.measure import evaluate
from limelight.cli.main import app
from limelight.errors import LimelightError, SettingError
from limelight.types import Record
from tests.benchmarks.official import WRITERS, make_media
from tests.benchmarks.stored import read_results

RECORD = Record("1", "It is {question}.", "Red.", {"contents": ["Cup"], "prompt": "What colour?"})


class Recorded(BaseHTTPRequestHandler):
    """Answers like a chat completions endpoint, and keeps what it was asked."""

    asked: ClassVar[list[dict[str, Any]]] = []
    says: ClassVar[str] = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Recorded.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        message = {"role": "assistant", "content": Recorded.says}
        reply = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Recorded.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Recorded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join(60)


def test_requests_to_the_judge_follow_the_interface(endpoint: str) -> None:
    Recorded.says = "Informative and true.\nRating: 5"
    judge = ChatJudge(endpoint, "grader", "secret")
    assert rating(judge(RECORD)) == 5
    (asked,) = Recorded.asked
    assert asked["path"] == "/v1/chat/completions"
    assert asked["key"] == "Bearer secret"
    assert asked["model"] == "grader"
    assert asked["temperature"] == 0.0
    text = asked["messages"][0]["content"]
    # a placeholder inside an answer stays what it is
    assert "Answer to grade: It is {question}." in text
    assert "Question: What colour?" in text
    assert "contents: Cup" in text
    assert "secret" not in json.dumps(judge.settings())


def test_an_empty_judgement(endpoint: str) -> None:
    Recorded.says = ""
    with pytest.raises(LimelightError, match="is empty"):
        ChatJudge(endpoint, "grader")(RECORD)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rating: 6", 6),
        ("rating is 0", None),
        ("**Rating:** 3", 3),
        ("A rating: 2 at first, but rating: 4", 4),
        ("Rating: 7", None),
        ("Rating: 10", None),
        ("Rating: 3.5", None),
        ("none", None),
        ("", None),
    ],
)
def test_ratings(text: str, expected: int | None) -> None:
    assert rating(text) == expected


def test_rates() -> None:
    said = ["Rating: 6", "Rating: 2", "Rating: 3", "hm", None]
    records = [Record(str(i), "a", "b", {} if s is None else {"judgement": s}) for i, s in enumerate(said)]
    found = {k: m.value for k, m in evaluate([rated("", records)], resamples=0).items()}
    assert found["rating"] == pytest.approx(11 / 3)
    assert found["hallucination rate"] == pytest.approx(1 / 3)
    assert found["unparsed"] == 2


def test_templates() -> None:
    assert check_template(RUBRIC) == RUBRIC
    with pytest.raises(SettingError, match=r"\{answer\}"):
        check_template("Rate it.")


def test_mmhal_from_the_command_line(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of the miniature, rated by the recorded endpoint once; a second call asks nobody."""
    monkeypatch.setattr(Recorded, "says", "Nothing of it is there. Rating: 2")
    monkeypatch.setenv("LIMELIGHT_JUDGE_KEY", "secret")
    WRITERS["mmhal"](tmp_path / "data")
    make_media(tmp_path / "data")
    command = [
        "bench", "mmhal", "--model", "demo-vision", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"),
        "--max-new-tokens", "4", "--judge-url", endpoint, "--judge-model", "judge", "--quiet",
    ]  # fmt: skip
    for _ in range(2):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert "hallucination rate" in done.output
        assert len(Recorded.asked) == 4
    assert {(a["path"], a["key"], a["model"]) for a in Recorded.asked} == {
        ("/v1/chat/completions", "Bearer secret", "judge")
    }
    metrics = read_results(tmp_path / "run")["metrics"]
    assert (metrics["rating"]["value"], metrics["hallucination rate"]["value"]) == (2.0, 1.0)
    assert not any("secret" in f.read_text() for f in (tmp_path / "run").glob("*.json*"))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("It fits.\nCorrect: yes", True),
        ("**Correct:** no", False),
        ("Correct: yes at first, but then\nCorrect: No.", False),
        ("is_prediction_correct=True", True),
        ("Yes, the description agrees.", True),
        ("*No*. It does not.", False),
        ("<think>Correct: yes</think>Correct: no", False),
        ("I cannot say.", None),
        ("Nothing like that... no verdict", False),  # as in EventHallusion's script: it starts with no
        ("", None),
    ],
)
def test_verdict(text: str, right: bool | None) -> None:
    assert verdict(text) is right


def test_judged_counts_those_without_a_verdict() -> None:
    rows = [Record(str(i), "a", "b", {"judgement": j}) for i, j in enumerate(["Correct: yes", "Correct: no", "?"])]
    found = evaluate([judged("", rows)], resamples=0)
    assert found["correct"].value == 0.5
    assert found["unjudged"].value == 1
