"""What the app does with a question, without the web: words as they come, then the page."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from limelight.decoding.explain import explained, watched
from limelight.decoding.generate import generate
from limelight.decoding.strategy import Strategy
from limelight.errors import PromptError
from limelight.media.worker import read
from limelight.models.adapter import Adapter
from limelight.models.prompts import sampling_rate
from limelight.report.media import Media
from limelight.report.page import Case, render_page
from limelight.types import Generation, Prompt, Step


@dataclass(frozen=True)
class Question:
    """What a person asks.

    Attributes:
        media: modality -> files.
        strategies: one or two (or more), shown side by side.
        generation: as for ``limelight.generate``: max_new_tokens, do_sample, temperature, seed ...
    """

    words: str
    media: Mapping[str, Sequence[Any]]
    strategies: Sequence[Strategy]
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """The answers so far; ``page`` is the finished page's HTML, in the last one only."""

    answers: tuple[Generation, ...]
    doing: str
    page: str = ""


class _LeftError(Exception):
    """The asker has gone."""


class Backend:
    """One model that answers one question at a time; whoever comes meanwhile waits.

    Without ``meter`` words have no colour until the page is there (a few models have no forward mode).
    """

    def __init__(self, adapter: Adapter, *, meter: bool = True) -> None:
        self.adapter, self.meter = adapter, meter
        self._turn = threading.Lock()

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the model can look at or listen to."""
        return tuple(m for m in ("image", "video", "audio") if m in self.adapter.placeholders.values())

    def ask(self, question: Question) -> Iterator[Progress]:
        """Every strategy's answer token by token with the meter's shares, then the page. Closing the iterator stops it.

        Raises:
            LimelightError: what is wrong with the question, its files or its settings.
        """
        if not question.words.strip():
            raise PromptError("nothing was asked", hint="write a question")
        if not any(question.media.values()):
            raise PromptError("there is nothing to look at or listen to", hint="add a picture, a sound or a video")
        # files of whoever asks: in processes of their own, with limits
        media = {
            k: [read(k, item, group="app", **self._options(k)) for item in v] for k, v in question.media.items() if v
        }
        prompt = self.adapter.prepare(question.words, media)
        done: tuple[Generation, ...] = ()
        for strategy in question.strategies:
            answer = Generation("", (), (), prompt, strategy.name, strategy.settings())
            yield Progress((*done, answer), f"{strategy.name} …")
            for answer in self._answer(prompt, strategy, question.generation):
                yield Progress((*done, answer), f"{strategy.name}: {len(answer.steps)} tokens")
            done = (*done, answer)
        yield Progress(done, "where every word comes from …")
        with self._turn:
            done = tuple(explained(self.adapter, a) if a.steps else a for a in done)
        case = Case(
            done, self._media(prompt), question=question.words, spell=lambda token: self.adapter.tokens([token])[0]
        )
        yield Progress(done, "done", render_page(case))

    def _options(self, kind: str) -> dict[str, Any]:
        return {"to_rate": sampling_rate(self.adapter)} if kind == "audio" else {}

    def _answer(self, prompt: Prompt, strategy: Strategy, settings: Mapping[str, Any]) -> Iterator[Generation]:
        """The answer as it grows, decoded in a thread of its own."""
        news: queue.Queue[Step | Generation | BaseException] = queue.Queue()
        left = threading.Event()

        def said(_: int, step: Step) -> None:
            if left.is_set():
                raise _LeftError
            news.put(step)

        def work() -> None:
            try:
                with self._turn:
                    if left.is_set():
                        return
                    news.put(
                        generate(
                            self.adapter,
                            None,
                            prompt,
                            strategy=watched(strategy) if self.meter else strategy,
                            relevance=False,
                            on_step=said,
                            **settings,
                        )
                    )
            except _LeftError:
                pass
            except BaseException as error:  # noqa: BLE001 - it is raised again where the answer is awaited
                news.put(error)

        thread = threading.Thread(target=work, name="limelight-app", daemon=True)
        thread.start()
        steps: tuple[Step, ...] = ()
        try:
            while True:
                new = news.get()
                if isinstance(new, BaseException):
                    raise new
                if isinstance(new, Generation):
                    yield replace(new, strategy=strategy.name, settings=strategy.settings())
                    return
                steps = (*steps, new)
                if news.empty():  # a slow reader is shown the latest only
                    yield self._so_far(prompt, strategy, steps)
        finally:
            left.set()
            thread.join()

    def _so_far(self, prompt: Prompt, strategy: Strategy, steps: tuple[Step, ...]) -> Generation:
        ids = [s.token for s in steps]
        text = str(self.adapter.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return Generation(text, tuple(ids), steps, prompt, strategy.name, strategy.settings())

    def _media(self, prompt: Prompt) -> Media:
        return Media(
            list(prompt.media.get("image", ())), (), prompt.media.get("audio", ()), prompt.media.get("video", ())
        )
