"""The session of :class:`limelight.decoding.methods.look_again.LookAgain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limelight.decoding.collate import batch_of, shift_spans
from limelight.decoding.dual import captured
from limelight.decoding.looking import joins
from limelight.decoding.looking.decision import Decision, decide
from limelight.decoding.looking.fields import Field, Floats, fields
from limelight.decoding.looking.gates import Gate
from limelight.decoding.looking.glance import Glance
from limelight.decoding.looking.localisers import localisers
from limelight.decoding.looking.originals import gain, prompts_of, seen_pixels, window_of
from limelight.decoding.looking.regions import Proposal
from limelight.decoding.looking.search import Search, View, given_proposals
from limelight.decoding.looking.views import (
    ViewStream,
    appended_prompt,
    empty_prompt,
    open_views,
    seconds_of,
    view_prompt,
)
from limelight.decoding.strategy import Detail, GenerationContext, StepOutput
from limelight.decoding.streams import main_stream
from limelight.errors import SettingError
from limelight.models.runtime.capture import DecoderCall
from limelight.models.spans import grown
from limelight.types import Prompt, Span, TakenView

if TYPE_CHECKING:
    from limelight.decoding.methods.look_again import LookAgain


@dataclass
class Joined:
    """A row that has looked again: the weight of its first view, and (stream, index, weight) of the others."""

    first: float
    parts: list[tuple[ViewStream, int, float]]
    taken: tuple[TakenView, ...]
    at: int  # the step at which it looked
    own: list[float] = field(default_factory=list)


class LookAgainSession:
    def __init__(self, strategy: LookAgain, context: GenerationContext) -> None:
        self.strategy, self.context, self.adapter = strategy, context, context.adapter
        self.prompts = prompts_of(context)
        name = self.adapter.names.ids
        lengths = [int(p.tensors[name].shape[1]) for p in self.prompts]
        real = [context.ids[r][context.mask[r]].tolist() for r in range(len(self.prompts))]
        self.said = [ids[n:] for ids, n in zip(real, lengths, strict=True)]  # behind a marker, part of the answer
        self.before = len(self.said[0])
        self.worth = [self._worth(p) for p in self.prompts]
        self._check()
        self.gate = Gate(strategy.when, strategy.threshold, context) if any(self.worth) else None
        self.main = main_stream(context)
        self.streams: list[ViewStream] = []
        self.joined: dict[int, Joined] = {}
        self.call: Any = None
        self.ends = _ends(context)

    def next(self, tokens: Tensor | None) -> StepOutput:
        plain = self.main.next(tokens)
        if tokens is not None:
            for row, token in enumerate(tokens.tolist()):
                self.said[row].append(token)
            for stream in self.streams:
                stream.next(tokens)
        if self.gate is not None and len(self.joined) < sum(map(bool, self.worth)):
            opened = self.gate.open(plain, tokens).tolist()
            rows = [
                r for r, o in enumerate(opened) if o and self.worth[r] and r not in self.joined and not self._over(r)
            ]
            if rows:
                self._look(rows, plain)
        out = plain.clone()
        for row, joined in self.joined.items():
            parts = [(s.logits[i], w) for s, i, w in joined.parts]
            out[row] = _weighted([(plain[row], joined.first), *parts])
        greedy = plain.argmax(-1).tolist()
        now = len(self.said[0])
        details = tuple(
            Detail(
                intervened=row in self.joined and self.joined[row].first < 1,
                plain=greedy[row],
                views=self.joined[row].taken if row in self.joined and self.joined[row].at == now else (),
            )
            for row in range(len(plain))
        )
        return StepOutput(out, details)

    def cache(self) -> Any:
        return self.main.cache

    def _over(self, row: int) -> bool:
        return bool(self.said[row][self.before :]) and self.said[row][-1] in self.ends

    def _worth(self, prompt: Prompt) -> set[tuple[str, int]]:
        """The media that another view shows in more detail: (kind, source)."""
        out: set[tuple[str, int]] = set()
        for kind, media in prompt.media.items():
            for source in range(len(media)):
                if kind == "audio" or gain(self.adapter, prompt, source, kind) >= self.strategy.least_gain:
                    out.add((kind, source))
        return out

    def _check(self) -> None:
        """Raise SettingError where the settings do not fit the prompts."""
        further = sorted({kind for worth in self.worth for kind, _ in worth} - {"image"})
        if self.strategy.join == "second-picture" and further:
            raise SettingError(
                f"look-again: join='second-picture' is for pictures, the prompt also has {', '.join(further)}",
                hint="join='auto' or join='evidence'",
            )
        boxes = self.strategy.boxes
        if boxes and isinstance(boxes[0][0], tuple) and len(boxes) != len(self.prompts):
            raise SettingError(
                f"look-again: boxes has {len(boxes)} lists for {len(self.prompts)} rows",
                hint="one list of boxes per row of the batch, or one for all rows",
            )

    def _look(self, rows: Sequence[int], plain: Tensor) -> None:
        """Take the views of ``rows``, and join them."""
        strategy = self.strategy
        with torch.inference_mode(False), torch.no_grad():
            logits = plain[list(rows)].clone()
            decision = decide(logits, strategy.decision, self.adapter.tokenizer, strategy.phrase)
            kinds = [{kind for kind, _ in self.worth[r]} for r in rows]
            how = [joins.chosen_join(self.adapter, strategy.join, k) for k in kinds]
            empty = self._empty(rows, how)
            found = self._fields(rows, decision)
            searches = [
                self._search(r, f, v, e, decision.of([i]))
                for i, (r, f, v, e) in enumerate(zip(rows, found, logits, empty, strict=True))
            ]
            alone = [not (h == "second-picture" and strategy.search == "windows") for h in how]
            placed: dict[tuple[int, int], tuple[ViewStream, int]] = {}  # (row's number, view) -> where its logits are
            while True:
                wanted = [(i, p) for i, s in enumerate(searches) for p in s.next()]
                if not wanted:
                    break
                self._take(rows, searches, wanted, alone, placed)
                self._hear(rows, searches, decision)
            for i, row in enumerate(rows):
                self._join(row, i, searches[i], how[i], decision.of([i]), empty[i], placed)
        used = {id(s) for j in self.joined.values() for s, _, w in j.parts if w}
        self.streams = list({id(s): s for j in self.joined.values() for s, _, _ in j.parts if id(s) in used}.values())

    def _take(
        self,
        rows: Sequence[int],
        searches: Sequence[Search],
        wanted: Sequence[tuple[int, Proposal]],
        alone: Sequence[bool],
        placed: dict[tuple[int, int], tuple[ViewStream, int]],
    ) -> None:
        """Ask about every proposal of a round; those that join as further pictures wait for the joint prompt."""
        asked = [(i, p) for i, p in wanted if alone[i]]
        prompts = [view_prompt(self.adapter, self.prompts[rows[i]], p, _field_of(searches[i], p)) for i, p in asked]
        spots: list[tuple[ViewStream, int]] = []
        if prompts:
            own = [rows[i] for i, _ in asked]
            for stream in open_views(self.context, prompts, own, [self.said[r] for r in own]):
                spots += [(stream, k) for k in range(len(stream.rows))]
        waiting = iter(spots)
        for i, proposal in wanted:
            search = searches[i]
            if alone[i]:
                stream, k = next(waiting)
                placed[i, len(search.taken)] = stream, k
                search.taken.append(View(proposal, stream.logits[k]))
            else:
                search.taken.append(View(proposal, search.taken[0].logits))

    def _hear(self, rows: Sequence[int], searches: Sequence[Search], decision: Decision) -> None:
        """Of long sounds whose windows have just been heard: localise in the window with the most evidence."""
        for i, (row, search) in enumerate(zip(rows, searches, strict=True)):
            if search.long is None or search.rounds != 1 or search.left <= 0 or self.strategy.boxes:
                continue
            best = search.taken[search.best()].proposal
            if best is None:
                continue
            prompt = view_prompt(self.adapter, self.prompts[row], best, None)
            tensors, _ = batch_of(self.adapter, [prompt])
            with torch.inference_mode(False), torch.no_grad():
                call = self.adapter.capture(tensors).cloned()
                media = (call.modality(self.adapter.modality_ids(tensors)) > 0) & call.mask
            scores = self._scores([row], decision.of([i]), [prompt.spans], [prompt], (call, media), self.said)
            heard = fields(scores[0], prompt.spans, prompt)
            sounds = [
                f.later(best.box[0], search.long[1]) for f in heard if f.kind == "audio" and f.source == best.source
            ]
            others = [
                (f, side)
                for f, side in zip(search.fields, search.sides, strict=True)
                if (f.kind, f.source) != ("audio", best.source)
            ]
            search.fields = [f for f, _ in others] + sounds
            search.sides = [side for _, side in others] + [0.0] * len(sounds)

    def _join(
        self, row: int, number: int, search: Search, how: str, decision: Decision, empty: Tensor | None,
        placed: Mapping[tuple[int, int], tuple[ViewStream, int]],
    ) -> None:  # fmt: skip
        prompt, views = self.prompts[row], search.taken
        crops = [v.proposal for v in views if v.proposal is not None]
        shown = [v.logits for v in views]
        parts: list[tuple[ViewStream, int, float]]
        if how == "second-picture" and crops:
            joint = appended_prompt(self.adapter, prompt, crops, search.fields)
            (stream,) = open_views(self.context, [joint], [row], [self.said[row]])
            first, parts = 0.0, [(stream, 0, 1.0)]
            share = [0.0, *([1 / len(crops)] * len(crops))]
            shown = [
                shown[0],
                *(stream.logits[0] if (number, k) not in placed else shown[k] for k in range(1, len(views))),
            ]
        else:
            asks = decision.asks is not None and bool(decision.asks[0])
            yes = decision.of([0] * len(shown)).margin(torch.stack(shown)) if asks else None
            share = joins.weights(how, torch.stack(shown), empty, yes).tolist()
            first = share[0]
            parts = [(*placed[number, k], w) for k, w in enumerate(share) if k and w]
        tokens = self.adapter.tokens([int(decision.chosen[0]), int(decision.other[0])])
        evidence = [None] * len(shown) if empty is None else joins.departure(torch.stack(shown), empty).tolist()
        taken = tuple(
            replace(
                _place(prompt, view.proposal, search.long),
                answer=self.adapter.tokens([int(x.argmax())])[0], margin=float(decision.margin(x[None])[0]),
                between=(tokens[0], tokens[1]), weight=w, evidence=e,
            )
            for view, x, w, e in zip(views, shown, share, evidence, strict=True)
        )  # fmt: skip
        self.joined[row] = Joined(first, parts, taken, len(self.said[row]))

    def _empty(self, rows: Sequence[int], how: Sequence[str]) -> list[Tensor | None]:
        """Logits to empty media of the rows that need them."""
        needed = [
            r for r, h in zip(rows, how, strict=True) if h in ("evidence", "any") or self.strategy.search != "windows"
        ]
        if not needed:
            return [None] * len(rows)
        prompts = [empty_prompt(self.adapter, self.prompts[r]) for r in needed]
        streams = open_views(self.context, prompts, needed, [self.said[r] for r in needed])
        found = dict(zip(needed, torch.cat([s.logits for s in streams]), strict=True))
        return [found.get(r) for r in rows]

    def _fields(self, rows: Sequence[int], decision: Decision) -> list[list[Field]]:
        """The localiser's fields of the media worth another look; with given boxes, empty ones."""
        spans = [self._spans(r) for r in rows]
        if self.strategy.boxes:
            scores = np.zeros((len(rows), max(s[-1].stop for s in spans)))
        else:
            if self.call is None:
                self.call = captured(self.context)
            call, media = self.call
            index = torch.tensor(list(rows), device=call.embeds.device)
            own = (call.reordered(index), media[index])
            said = {r: self.said[r][self.before :] for r in rows}
            scores = self._scores(rows, decision, spans, [self.prompts[r] for r in rows], own, said, self.before)
        found = [fields(scores[i], spans[i], self.prompts[r]) for i, r in enumerate(rows)]
        return [[f for f in own if (f.kind, f.source) in self.worth[r]] for own, r in zip(found, rows, strict=True)]

    def _spans(self, row: int) -> tuple[Span, ...]:
        prompt = self.prompts[row]
        pad = self.context.ids.shape[1] - len(prompt.tokens) - self.before
        return shift_spans(prompt.spans, pad)

    def _scores(
        self, rows: Sequence[int], decision: Decision, spans: Sequence[tuple[Span, ...]], prompts: Sequence[Prompt],
        captured_call: tuple[DecoderCall, Tensor], said: Mapping[int, Sequence[int]] | Sequence[Sequence[int]], before: int = 0,
    ) -> Floats:  # fmt: skip
        """The localiser's scores ``[R, T]`` of captured prompts, behind what each row has said since; ``before``: positions
        of an answer that the captured prompts contain."""
        call, media = captured_call
        new = torch.tensor([list(said[r]) for r in rows], dtype=torch.long, device=call.embeds.device)
        new = new.reshape(len(rows), -1)
        phrase = torch.tensor(decision.phrase[:-1], dtype=torch.long, device=new.device).expand(len(rows), -1)
        new = torch.cat([new, phrase], dim=1)
        if new.shape[1]:
            call = call.appended(self.adapter.embed(new))
            media = torch.nn.functional.pad(media, (0, new.shape[1]))
        whole = tuple(grown(s, call.length) for s in spans)
        behind = before + new.shape[1]
        glance = Glance(self.adapter, call, media, decision, whole, tuple(prompts), behind, self.strategy.options)
        found: Floats = localisers()[self.strategy.where].scores(glance).detach().cpu().double().numpy()
        return found

    def _search(self, row: int, found: list[Field], logits: Tensor, empty: Tensor | None, decision: Decision) -> Search:
        strategy, prompt = self.strategy, self.prompts[row]
        side = {k: seen_pixels(self.adapter, prompt, k) ** 0.5 for k in ("image", "video")}
        search = Search(
            strategy.search, strategy.views, strategy.windows, strategy.sure, strategy.telling, strategy.overlap, found,
            [side.get(f.kind, 0.0) for f in found], self._long(prompt), [View(None, logits)], empty,
        )  # fmt: skip
        if strategy.order == "confidence":
            search.confidence = lambda x: float(decision.margin(x[None])[0].sigmoid())
        if strategy.boxes and found:
            boxes = strategy.boxes[row] if isinstance(strategy.boxes[0][0], tuple) else strategy.boxes
            first = found[0]
            size = first.size if search.long is None or first.kind != "audio" else (search.long[1], 1.0)
            search.given = given_proposals(boxes, first.kind, first.source, size, first.span)
        return search

    def _long(self, prompt: Prompt) -> tuple[int, float, float] | None:
        window = window_of(self.adapter)
        for source, (samples, rate) in enumerate(prompt.media.get("audio", ())):
            if window is not None and len(samples) / rate > window + 1e-6:
                return source, len(samples) / rate, window
        return None


def _ends(context: GenerationContext) -> frozenset[int]:
    found = getattr(context.config, "eos_token_id", None)
    return frozenset([found] if isinstance(found, int) else found or ())


def _weighted(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The weighted sum of logits; excluded tokens (-inf) stay excluded, and weights of 0 do not count."""
    used = [(x, w) for x, w in parts if w]
    if len(used) == 1:
        return used[0][0]
    return torch.stack([x * w for x, w in used]).sum(0)


def _field_of(search: Search, proposal: Proposal) -> Field | None:
    return next((f for f in search.fields if (f.kind, f.source) == (proposal.kind, proposal.source)), None)


def _place(prompt: Prompt, proposal: Proposal | None, long: tuple[int, float, float] | None) -> TakenView:
    """What a proposal shows (None: the whole medium)."""
    if proposal is None:
        kind = next((k for k in ("image", "audio", "video") if prompt.media.get(k)), "image")
        return TakenView(kind, 0, interval=None if long is None else (0.0, long[2]))
    if proposal.kind == "audio":
        return TakenView("audio", proposal.source, interval=(proposal.box[0], proposal.box[2]))
    if proposal.kind == "video":
        when = seconds_of(prompt.media["video"][proposal.source], proposal)
        return TakenView("video", proposal.source, proposal.box, when)
    return TakenView("image", proposal.source, proposal.box)
