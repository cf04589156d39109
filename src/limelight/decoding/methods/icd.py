"""ICD: contrast with the logits for the same prompt under a disturbing instruction.

Source: Wang et al., "Mitigating Hallucinations in Large Vision-Language Models with Instruction Contrastive Decoding",
Findings of ACL 2024 (arXiv 2403.18715); formula and instruction as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limelight.decoding.contrast_inputs import inserted, media_mask, refuse_encoder_decoder
from limelight.decoding.contrastive import ContrastSession, amplified, check_choice, check_range
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.errors import PromptError, SettingError

IMAGE = "You are a confused objects detector to provide a fuzzy overview or impression of the image."
AUDIO = "You are a confused sounds detector to provide a fuzzy overview or impression of the audio."
VIDEO = "You are a confused objects detector to provide a fuzzy overview or impression of the video."
_BY_MODALITY = {1: IMAGE, 2: VIDEO, 3: AUDIO}


@dataclass(frozen=True)
class Icd(Method):
    """``(1 + alpha) l - alpha l'``, ``l'`` from the prompt with a disturbing instruction; implausible tokens dropped.

    Args:
        alpha: strength of the contrast; 0 is the unchanged model.
        beta: plausibility cut, in [0, 1]; 0 drops none.
        instruction: text (needs a tokenizer) or token ids; None: the authors' confused detector, reworded for audio or
            video where those are the media (ours).
        where: ``user``: directly before the first image, video or audio and its start marker, which is inside the user's
            turn in every chat template; ``front``: after the BOS token.

    Differs from the paper: the position of the instruction, see below.
    Differs from the released code (LLaVA-1.5, InstructBLIP, MiniGPT-4; batch 1, sampling only): there the instruction
    replaces LLaVA's system prompt, or is also passed to InstructBLIP's Q-Former; here it is inserted as tokens, since a
    custom decoding method receives a prompt, not messages. There the contrast with a distorted image can be added; this
    sum is not supported. Its scripts try five instructions, of which the default here is the "confused" one, and pass
    alpha 1, as here; the sampler's own default is 0.5. Batches, greedy decoding and any modality are supported.
    """

    name = "icd"
    capabilities = Capabilities(batches=True, beams=True, second_prompt=True, continues_cache=True)

    alpha: float = 1.0
    beta: float = 0.1
    instruction: str | tuple[int, ...] | None = None
    where: str = "user"

    def __post_init__(self) -> None:
        check_range("icd", "alpha", self.alpha, 0.0, hint="the paper: 1")
        check_range("icd", "beta", self.beta, 0.0, 1.0, hint="the paper: 0.1")
        check_choice("icd", "where", self.where, ("user", "front"))
        if self.instruction is not None and not self.instruction:
            raise SettingError("icd: the instruction is empty", hint="pass None for the authors' instruction")
        if self.instruction is not None and not isinstance(self.instruction, str):  # lists come from files
            object.__setattr__(self, "instruction", tuple(self.instruction))

    def session(self, context: GenerationContext) -> ContrastSession:
        """Raises SettingError without a tokenizer, unless ``instruction`` is given as token ids."""
        context.require_prompt()
        refuse_encoder_decoder(context, "a prompt with an instruction", "this decoder is given no instructions")
        words = self._words(context)
        at = [place(context, row, self.where) for row in range(context.ids.shape[0])]
        contrast = inserted(context, words, at)
        return ContrastSession(context, contrast, lambda real, other, _: amplified(real, other, self.alpha, self.beta))

    def _words(self, context: GenerationContext) -> Sequence[int]:
        if isinstance(self.instruction, tuple):
            return self.instruction
        tokenizer = context.adapter.tokenizer
        if tokenizer is None:
            raise SettingError(
                "icd needs the tokenizer to encode its instruction",
                hint="custom_generate(icd(), processor=processor), or instruction=(token ids)",
            )
        text = self.instruction or _BY_MODALITY[int(context.modality_ids[media_mask(context)].mode().values)]
        ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise SettingError(f"icd: the tokenizer returns no tokens for {text!r}", hint="use another instruction")
        return ids


def place(context: GenerationContext, row: int, where: str) -> int:
    """Return the position of ``row`` before which the instruction is inserted.

    Start markers are the special tokens directly before the media; BOS is never passed over.
    """
    ids = context.ids[row].tolist()
    start = int(context.mask[row].long().argmax())
    tokenizer = context.adapter.tokenizer
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        bos = getattr(context.config, "bos_token_id", None)
    after_bos = start + int(ids[start] == bos)
    if where == "front":
        return after_bos
    found = media_mask(context)[row].nonzero()
    if not len(found):
        raise PromptError(f"row {row} contains no media", hint="put the media into the messages")
    at = int(found[0, 0])
    special = set(getattr(tokenizer, "all_special_ids", None) or ())
    while at > after_bos and ids[at - 1] in special:
        at -= 1
    return at


icd = Icd
STRATEGIES = {"icd": Icd}
