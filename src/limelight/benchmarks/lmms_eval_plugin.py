"""limelight's decoding strategies as a model of lmms-eval:

    lmms-eval --model limelight --model_args pretrained=llava-hf/llava-1.5-7b-hf,strategy=lime,lr=3e-4 --tasks pope

found through the entry point ``lmms_eval.models``. Arguments after ``strategy=`` are settings of the strategy. Chat
messages are used, requests are answered one at a time, and under ``accelerate launch`` one replica runs per GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from limelight.benchmarks.extras import need
from limelight.benchmarks.loading import row_seed
from limelight.errors import SettingError, UnsupportedError
from limelight.thinking import MARKERS, spoken

EXTRA = "lmms-eval"


def manifest() -> Any:
    """Return lmms-eval's ``ModelManifest``, the payload of the entry point."""
    registry = need("lmms_eval.models.registry_v2", EXTRA)
    return registry.ModelManifest(model_id="limelight", chat_class_path=f"{__name__}.Limelight")


def __getattr__(name: str) -> Any:
    # the class exists only where lmms-eval, which has its base class, is installed
    if name == "Limelight":
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def generation_settings(requested: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Convert lmms-eval's generation_kwargs to transformers' settings and stop strings. Temperature 0 means greedy."""
    settings = {k: v for k, v in requested.items() if v is not None}
    until = settings.pop("until", None) or []
    stops = [until] if isinstance(until, str) else [str(s) for s in until]
    temperature = float(settings.pop("temperature", 0.0))
    if settings.setdefault("do_sample", temperature > 0) and temperature > 0:
        settings["temperature"] = temperature
    if not settings["do_sample"]:
        settings.pop("top_p", None)
        settings.pop("top_k", None)
    settings.setdefault("max_new_tokens", 1024)
    return settings, stops


def until_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop string."""
    ends = [text.find(s) for s in stops if s and s in text]
    return text[: min(ends)] if ends else text


@cache
def _model_class() -> Any:
    base = need("lmms_eval.api.model", EXTRA).lmms
    instance = need("lmms_eval.api.instance", EXTRA)
    protocol = need("lmms_eval.protocol", EXTRA)

    class Limelight(base):  # type: ignore[misc, valid-type]
        """lmms-eval's interface over ``limelight.generate``."""

        is_simple = False

        def __init__(
            self,
            pretrained: str,
            strategy: str = "greedy",
            device: str | None = None,
            dtype: str = "auto",
            seed: int = 0,
            trust_remote_code: bool = False,
            batch_size: int | str | None = None,
            max_batch_size: int | str | None = None,
            **settings: Any,
        ) -> None:
            import limelight

            super().__init__()
            if batch_size not in (None, 1, "1"):
                raise SettingError(
                    f"requests are answered one at a time, got batch_size={batch_size}", hint="omit batch_size"
                )
            if device == "cuda" and "LOCAL_RANK" in os.environ:
                device = f"cuda:{os.environ['LOCAL_RANK']}"
            self.adapter = limelight.load(pretrained, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            self.strategy = limelight.strategy(strategy, **settings)
            self.seed = seed

        @property
        def device(self) -> Any:
            return next(self.adapter.model.parameters()).device

        @property
        def batch_size(self) -> int:
            return 1

        def generate_until(self, requests: list[Any]) -> list[Any]:
            """Answer the requests, in order."""
            return [self._answer(*request.args) for request in requests]

        def _answer(
            self, context: str, doc_to_messages: Any, requested: Any, doc_id: Any, task: str, split: str
        ) -> Any:
            import limelight

            doc = self.task_dict[task][split][doc_id]
            messages = protocol.ChatMessages(messages=doc_to_messages(doc)).to_hf_messages()
            settings, stops = generation_settings(requested)
            # reasoning may contain blank lines and other stop strings: reasoning models are cut afterwards
            thinks = MARKERS.used_by(self.adapter.tokenizer)
            answer = limelight.generate(
                self.adapter,
                messages=messages,
                strategy=self.strategy,
                relevance=False,
                seed=row_seed(self.seed, f"{task}/{split}/{doc_id}"),
                stop_strings=None if thinks else stops or None,
                **settings,
            )
            asked = answer.prompt.tensors[self.adapter.names.ids][0].tolist()
            answered = spoken(self.adapter.tokenizer, answer.token_ids, asked)
            text = until_stop(MARKERS.answer(answered.text, opened=answered.opened), stops)
            self.cache_hook.add_partial("generate_until", (context, requested), text)
            return instance.GenerationResult(text, instance.TokenCounts(output_tokens=len(answer.token_ids)))

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise UnsupportedError(
                "decoding strategies define what is generated, not the likelihood of a given text",
                hint="choose a task with output_type generate_until",
            )

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise UnsupportedError("multi-round tasks are not supported", hint="choose a task with one round")

    return Limelight
