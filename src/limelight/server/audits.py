"""POST /v1/grounding: media support of each word of a finished answer, without generation."""

from __future__ import annotations

import time
import uuid
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from limelight.auditing.audited import Audit
from limelight.auditing.auditor import audited
from limelight.auditing.forward import AnsweredPrompt
from limelight.auditing.rows import Row
from limelight.decoding.explain import explained
from limelight.decoding.methods.meter import Meter
from limelight.models.answers import answer_tokens, earlier_answers
from limelight.server.answering import Finished, GenerationRequest, TokenEvent, longest_prompt, prepared
from limelight.server.conversation import Conversation
from limelight.server.endpoint import Endpoint
from limelight.server.pages import PageMaker
from limelight.server.problems import invalid
from limelight.server.replies import TEXT_ONLY
from limelight.server.responses import AuditReply
from limelight.server.schema import AuditRequest, parse_as
from limelight.server.worker import Job


@dataclass(frozen=True)
class AuditedAnswer(Finished):
    """Event: the audit is complete."""

    audit: Audit | None = None


@dataclass(frozen=True)
class AuditSpec(GenerationRequest):
    """A request to audit an answer: the last turn of the conversation, whose memory is released with the request."""

    answer: str = ""

    @property
    def before(self) -> Conversation:
        """The conversation before the answer."""
        return replace(self.conversation, turns=self.conversation.turns[:-1], hold=None)

    @property
    def key(self) -> Hashable | None:
        """Batching key: audits are batched with each other; requests for a page are processed alone."""
        return None if self.page else ("audit", self.conversation.kinds)


@dataclass
class AuditShape:
    """Formats the reply to one request."""

    model: str
    has_media: bool
    warnings: Sequence[str] = ()
    page: PageMaker | None = None
    page_url: str | None = None
    stream: bool = False
    id: str = field(default_factory=lambda: f"grounding-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> list[str]:
        return []

    def events(self, event: TokenEvent | Finished) -> list[str]:
        return []

    def closing(self, done: Sequence[Finished]) -> list[str]:
        return []

    async def completed(self, done: Sequence[Finished]) -> None:
        if self.page is not None:
            self.page_url = await self.page.made([d.generation for d in done if d.generation is not None])

    def complete(self, events: Sequence[TokenEvent], done: Sequence[Finished]) -> Response:
        audit = next(d.audit for d in done if isinstance(d, AuditedAnswer) and d.audit is not None)
        prompt_length, length = len(audit.generation.prompt.tokens), len(audit.steps)
        result = audit.to_json()
        reply: AuditReply = {
            "id": self.id,
            "object": "grounding",
            "created": self.created,
            "model": self.model,
            "answer": audit.text,
            "summary": result["summary"],
            "tokens": result["tokens"],
            "words": result["words"],
            "sentences": result["sentences"],
            "flag": result["flag"],
            "usage": {
                "prompt_tokens": prompt_length,
                "completion_tokens": length,
                "total_tokens": prompt_length + length,
            },
        }
        if self.page_url is not None:
            reply["page_url"] = self.page_url
        if not self.has_media:
            reply["note"] = TEXT_ONLY.partition(":")[0]
        if self.warnings:
            reply["warnings"] = list(self.warnings)
        return JSONResponse(reply)


class Audits(Endpoint):
    """The endpoint for audits."""

    async def accepted(self, request: Request, body: bytearray) -> tuple[AuditSpec, AuditShape]:
        config, state = self.config, self.state
        audit = await state.parsed(parse_as, AuditRequest, body)
        self.check_model(audit.model)
        conversation = await self.state.conversation(request, audit)
        page = (
            PageMaker(state.pages, state.adapter, str(request.base_url), audit.words) if audit.limelight.page else None
        )
        spec = AuditSpec(conversation, Meter(), page=audit.limelight.page, answer=audit.answer)
        return spec, AuditShape(config.model, conversation.has_media, conversation.warnings, page)

    def _work(self, jobs: Sequence[Job]) -> None:
        """Runs in the worker's thread: in batches as large as permitted; jobs fail independently."""
        self.metrics.batch.observe(len(jobs))
        ready: list[tuple[Job, Row, AnsweredPrompt]] = []
        for job in jobs:
            try:
                ready.append((job, *self._ready(job)))
            except Exception as error:  # noqa: BLE001  # one job's media or answer must not affect others
                self.worker.fail(job, error)
        for group in self._groups(ready):
            try:
                self._audit(group)
            except Exception as error:  # noqa: BLE001  # each job fails with its own error
                for one in group:
                    try:
                        if len(group) == 1:
                            raise error
                        self._audit([one])
                    except Exception as own:  # noqa: BLE001
                        self.worker.fail(one[0], own)

    def _ready(self, job: Job) -> tuple[Row, AnsweredPrompt]:
        adapter, limits, spec = self.state.adapter, self.config.limits, job.request
        prompt = prepared(adapter, spec.before, regions=spec.page)
        messages = spec.before.messages()
        tokens = answer_tokens(adapter, messages, spec.answer)
        most = longest_prompt(adapter, limits)
        if len(prompt.tokens) + len(tokens) > most:
            raise invalid(
                f"prompt and answer have {len(prompt.tokens) + len(tokens)} tokens including media, the limit is {most}",
                param="messages",
                code="context_length_exceeded",
            )
        earlier = earlier_answers(adapter, messages, prompt)
        return row_of(spec), AnsweredPrompt(prompt, tokens, earlier)

    def _groups(
        self, ready: Sequence[tuple[Job, Row, AnsweredPrompt]]
    ) -> Iterator[list[tuple[Job, Row, AnsweredPrompt]]]:
        """Split jobs into batches within the limit, including padding and tangent rows."""
        group: list[tuple[Job, Row, AnsweredPrompt]] = []
        for one in ready:
            if one[0].cancelled.is_set():
                continue
            widest = max(len(s.prompt.tokens) + len(s.tokens) for _, _, s in (*group, one))
            if group and 2 * widest * (len(group) + 1) > self.config.limits.batch_tokens:
                yield group
                group = []
            group.append(one)
        if group:
            yield group

    def _audit(self, group: Sequence[tuple[Job, Row, AnsweredPrompt]]) -> None:
        found = audited(self.state.adapter, [row for _, row, _ in group], [said for _, _, said in group])
        for (job, _, said), audit in zip(group, found, strict=True):
            shown = explained(self.state.adapter, audit.generation) if job.request.page else None
            job.send(
                AuditedAnswer(
                    "", "stop", len(said.prompt.tokens) + len(said.tokens), 0, None, text=audit.text, generation=shown,
                    audit=audit,
                )
            )  # fmt: skip


def row_of(spec: AuditSpec) -> Row:
    """Convert the request to a row; its media are already in the prompt."""
    turns = tuple(
        {"role": m["role"], "content": [i if i["type"] == "text" else {"type": i["type"]} for i in m["content"]]}
        for m in spec.before.messages()
    )
    return Row("request", turns, spec.answer, turn=sum(t["role"] == "assistant" for t in turns))
