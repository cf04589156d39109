"""The app's backend, without the user interface: streams the answer, then renders the report page."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from limelight.decoding.answer import end_markers
from limelight.decoding.compare import compared
from limelight.decoding.explain import explained, watched
from limelight.decoding.generate import generate
from limelight.decoding.strategy import Strategy, capabilities_of
from limelight.errors import PromptError
from limelight.media.worker import read
from limelight.models.adapter import Adapter
from limelight.models.prompts import sampling_rate
from limelight.report.media import Media
from limelight.report.page import Case, render_page
from limelight.types import Generation, Prompt, Relevance, Step


@dataclass(frozen=True)
class Question:
    """A user's question.

    Attributes:
        media: modality -> files.
        strategies: one or more, shown side by side.
        generation: as for ``limelight.generate``: max_new_tokens, do_sample, temperature, seed ...
    """

    words: str
    media: Mapping[str, Sequence[Any]]
    strategies: Sequence[Strategy]
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """The answers so far; ``page``: HTML of the report page, of the answers that are attributed already; "" where it is the
    same as before."""

    answers: tuple[Generation, ...]
    status: str
    page: str = ""


class _CancelledError(Exception):
    """The request was cancelled."""


class Backend:
    """One model that answers one question at a time; further questions wait.

    Without ``meter`` words are not coloured until the page is ready (a few models have no forward mode).
    """

    def __init__(self, adapter: Adapter, *, meter: bool = True) -> None:
        self.adapter, self.meter = adapter, meter
        self._lock = threading.Lock()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The media types that the model accepts."""
        return tuple(m for m in ("image", "video", "audio") if m in self.adapter.modalities)

    def ask(self, question: Question) -> Iterator[Progress]:
        """Stream every strategy's answer token by token with the meter's shares, then the page; closing the iterator stops it.

        Raises:
            LimelightError: the question, its files or its settings are invalid.
        """
        if not question.words.strip():
            raise PromptError("the question is empty", hint="enter a question")
        if not any(question.media.values()):
            raise PromptError("the question has no media", hint="add an image, audio or a video")
        # untrusted files: decoded in separate processes, with limits
        media = {
            k: [read(k, item, group="app", **self._options(k)) for item in v] for k, v in question.media.items() if v
        }
        long_audio = all(capabilities_of(s).long_audio for s in question.strategies)
        prompt = self.adapter.prepare(question.words, media, long_audio=long_audio)
        done: tuple[Generation, ...] = ()
        for strategy in question.strategies:
            answer = Generation("", (), (), prompt, strategy.name, strategy.settings())
            yield Progress((*done, answer), f"{strategy.name} …")
            for answer in self._answer(prompt, strategy, question.generation):
                yield Progress((*done, answer), f"{strategy.name}: {len(answer.steps)} tokens")
            done = (*done, answer)
        for i, answer in enumerate(done):  # the page grows by an answer at a time
            yield Progress(done, f"{answer.strategy}: attributing every word …")
            with self._lock:
                done = (*done[:i], explained(self.adapter, answer) if answer.steps else answer, *done[i + 1 :])
            if i + 1 < len(done):
                yield Progress(done, f"{answer.strategy}: done", self._page(question, prompt, done[: i + 1]))
        with self._lock:
            decisions = [d for d in compared(self.adapter, done).decisions if d is not None]
        yield Progress(done, "done", self._page(question, prompt, done, decisions))

    def _page(
        self, question: Question, prompt: Prompt, answers: Sequence[Generation], decisions: Sequence[Relevance] = ()
    ) -> str:
        return render_page(
            Case(
                answers,
                self._media(prompt),
                question=question.words,
                spell=lambda token: self.adapter.tokens([token])[0],
                decisions=decisions,
            )
        )

    def _options(self, kind: str) -> dict[str, Any]:
        return {"to_rate": sampling_rate(self.adapter)} if kind == "audio" else {}

    def _answer(self, prompt: Prompt, strategy: Strategy, settings: Mapping[str, Any]) -> Iterator[Generation]:
        """Yield the growing answer, decoded in a separate thread."""
        events: queue.Queue[Step | Generation | BaseException] = queue.Queue()
        cancelled = threading.Event()

        def on_step(_: int, step: Step) -> None:
            if cancelled.is_set():
                raise _CancelledError
            events.put(step)

        def work() -> None:
            try:
                with self._lock:
                    if cancelled.is_set():
                        return
                    events.put(
                        generate(
                            self.adapter,
                            None,
                            prompt,
                            strategy=watched(strategy) if self.meter else strategy,
                            relevance=False,
                            on_step=on_step,
                            **settings,
                        )
                    )
            except _CancelledError:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again where the answer is awaited
                events.put(error)

        thread = threading.Thread(target=work, name="limelight-app", daemon=True)
        thread.start()
        steps: tuple[Step, ...] = ()
        try:
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, Generation):
                    yield replace(event, strategy=strategy.name, settings=strategy.settings())
                    return
                steps = (*steps, event)
                if events.empty():  # a slow consumer only gets the latest
                    yield self._partial(prompt, strategy, steps)
        finally:
            cancelled.set()
            thread.join()

    def _partial(self, prompt: Prompt, strategy: Strategy, steps: tuple[Step, ...]) -> Generation:
        ids = [s.token for s in steps]
        text = str(self.adapter.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        ended = bool(ids) and ids[-1] in end_markers(self.adapter)
        return Generation(text, tuple(ids), steps, prompt, strategy.name, strategy.settings(), ended=ended)

    def _media(self, prompt: Prompt) -> Media:
        return Media(
            list(prompt.media.get("image", ())), (), prompt.media.get("audio", ()), prompt.media.get("video", ())
        )
