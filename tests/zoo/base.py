"""What a row of the zoo is, and the two helpers every row goes through: `enliven` and `family`."""

import dis
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Model = Any  # a transformers PreTrainedModel; its classes are not typed well enough to be of use here
Tensors = dict[str, Tensor]
Part = int | tuple[str, int]  # one text token id, or a run of n placeholders of a modality
TOKEN_TYPE = {"text": 0, "image": 1, "video": 2, "audio": 3}
VOCAB = 128
PAD = 0


@dataclass(frozen=True)
class Tiny:
    """A tiny random multimodal LLM and the keyword arguments that its `forward` and `generate` take.

    `inputs(model)` is one prompt; `inputs(model, row=1)` another, shorter one about other media. `batch(model)` stacks
    the two, left padded. `spans` are the runs of placeholder positions of row 0, half-open.

    Marks, all of them checked by the self-test: the four of `traits.FACTS` (how the text stack is called), and what a
    test has to know of the family: `no_float64` (transformers' own code fails or rounds there), `discrete` (a medium
    becomes vocabulary ids: no gradient reaches it, and a change of it moves some positions only),
    `reads_before_layers` (a cross-attention block stands before the first layer).
    """

    name: str
    build: Callable[[], Model]
    inputs: Callable[..., Tensors]
    batch: Callable[[Model], Tensors] | None
    modalities: Mapping[str, int]
    spans: tuple[tuple[int, int, str], ...]
    traits: frozenset[str]
    decoder: str
    no_batch: str = ""  # why batch is None
    constant: frozenset[int] = frozenset()  # placeholder positions that hold no media (a newline embedding, say)
    batch_spans: tuple[tuple[tuple[int, int, str], ...], ...] = ()  # of both rows, in the padded coordinates
    notes: str = ""
    marks: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()  # classes that the installed transformers does not have


def seeded(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal noise, the same on every call. Shape: `shape`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def head_of(model: Model) -> nn.Module:
    """The matrix of the logits; BLIP's own classes do not all say where it is."""
    head = model.get_output_embeddings()
    return model.language_model.get_output_embeddings() if head is None else head


def embeddings_of(model: Model) -> nn.Module | None:
    """The table of words; PP-FormulaNet's own class does not say where it is."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return model.get_decoder().get_input_embeddings()


def enliven(model: Model, seed: int = 0, gains: Mapping[str, float] | None = None) -> Model:
    """Re-draw every parameter by its role, in place.

    transformers' own initialisation (std 0.02, zero biases, unit norms) gives a nearly constant network on which a
    wrong rule looks right. Here attention scores have a standard deviation around 2, logits around 2, norm weights
    scatter around their neutral value, and no bias is zero. `gains` multiplies the std of the parameters whose
    qualified name contains the key.
    """
    generator = torch.Generator().manual_seed(seed)
    head = head_of(model)
    embedding = embeddings_of(model)
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    done: set[int] = set()

    def noise(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator) * std

    def draw(module: nn.Module, name: str, key: str, p: Tensor) -> Tensor:
        if head is not None and p is head.weight:
            return noise(p, 2.0 / math.sqrt(p.shape[-1]))
        if isinstance(module, nn.Embedding):
            return noise(p, 0.35 if tied else 0.7)
        if "bias" in key:
            return noise(p, 0.2)
        if p.numel() == 1:
            return p + 0.5 + noise(p, 0.1) if float(p) == 0 else p + noise(p, 0.1)
        if p.ndim == 1:
            return p + noise(p, 0.2)
        if key == "weight":
            fan_in = p[0].numel()
            sharp = 1.5 if name.split(".")[-1] in {"q_proj", "k_proj", "qkv_proj", "qkv", "query_key_value"} else 1.0
            return noise(p, sharp / math.sqrt(fan_in))
        if p.ndim == 3 and min(p.shape[1:]) > 1 and p.shape[0] > 1:  # stacked experts, either way round
            return noise(p, 1.0 / math.sqrt((p.shape[1] + p.shape[2]) / 2))
        return p + noise(p, 0.3)

    with torch.no_grad():
        for name, module in model.named_modules():
            for key, p in module.named_parameters(recurse=False):
                if id(p) in done:
                    continue
                done.add(id(p))
                new = draw(module, name, key, p)
                for part, gain in (gains or {}).items():
                    if part in f"{name}.{key}":
                        new = new * gain
                p.copy_(new)
    return model


def lay_out(parts: Sequence[Part], tokens: Mapping[str, int]) -> tuple[list[int], tuple[tuple[int, int, str], ...]]:
    """Token ids and placeholder runs of a prompt; neighbouring runs of one modality count as one."""
    ids: list[int] = []
    spans: list[tuple[int, int, str]] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
            continue
        modality, n = part
        start, stop = len(ids), len(ids) + n
        ids += [tokens[modality]] * n
        if spans and spans[-1][1] == start and spans[-1][2] == modality:
            start = spans.pop()[0]
        spans.append((start, stop, modality))
    return ids, tuple(spans)


def stack(rows: Sequence[Tensors]) -> Tensors:
    """Media of several prompts, along the first dimension."""
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


def to_model(model: Model, tensors: Tensors) -> Tensors:
    return {k: v.to(model.device, model.dtype if v.is_floating_point() else v.dtype) for k, v in tensors.items()}


def missing_classes(make: Callable[[], Model]) -> frozenset[str]:
    """Classes by which ``make`` builds its model and that the installed transformers does not have."""
    code = getattr(make, "__code__", None)
    names = () if code is None else code.co_names
    here = set() if code is None else {*make.__globals__, *_imported(code)}
    return frozenset(n for n in names if n[0].isupper() and n not in here and not hasattr(transformers, n))


def _imported(code: Any) -> set[str]:
    """Names that a function imports itself."""
    return {i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_FROM"}


def family(
    name: str,
    make: Callable[[], Model],
    parts: Sequence[Part],
    tokens: Mapping[str, int],
    media: Callable[[int], Tensors],
    *,
    traits: str,
    decoder: str,
    short: Sequence[Part] | None = None,
    types: str | None = None,
    combine: Callable[[Sequence[Tensors]], Tensors] = stack,
    no_batch: str = "",
    constant: Sequence[int] = (),
    gains: Mapping[str, float] | None = None,
    extra: Callable[[Tensor, Tensor], Tensors] | None = None,
    notes: str = "",
    marks: str = "",
) -> Tiny:
    """A row of the zoo.

    Args:
        make: the model as its class makes it; seeded, enlivened and put into eval mode here.
        parts: the prompt. tokens: the placeholder id of each modality.
        media: pixel values and the like of one prompt from a seed.
        traits: space-separated. decoder: dotted path of the owner of `layers`.
        short: the second prompt; by default the first without its first token.
        types: the name under which the family takes token types (0 text, 1 image, 2 video, 3 audio), if it does.
        combine: media of several prompts into one batch.
        extra: further inputs from input_ids and attention_mask.
    """
    prompts = (tuple(parts), tuple(parts[1:] if short is None else short))
    laid = [lay_out(prompt, tokens) for prompt in prompts]

    def build() -> Model:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = enliven(make(), gains=gains).eval()
        head = head_of(model)
        with torch.no_grad():  # a placeholder is never the next token: some families fail when it is
            head.weight[sorted(set(tokens.values()))] *= 0.01
        if any(name.endswith("experts") for name, _ in model.named_modules()):
            model.set_experts_implementation("eager")  # the default, grouped_mm, has no float64 kernel
        for part in model.modules():
            if getattr(part, "generation_config", None) is not None:
                part.generation_config.eos_token_id = None
                part.generation_config.pad_token_id = PAD
        return model

    def collate(rows: Sequence[int]) -> Tensors:
        longest = max(len(laid[row][0]) for row in rows)
        ids = torch.tensor([[PAD] * (longest - len(laid[row][0])) + laid[row][0] for row in rows])
        mask = torch.tensor([[0] * (longest - len(laid[row][0])) + [1] * len(laid[row][0]) for row in rows])
        out = {"input_ids": ids, "attention_mask": mask}
        if types is not None:
            kinds = torch.zeros_like(ids)
            for modality, token in tokens.items():
                kinds[ids == token] = TOKEN_TYPE[modality]
            out[types] = kinds
        if extra is not None:
            out |= extra(ids, mask)
        return out

    def inputs(model: Model, row: int = 0) -> Tensors:
        return to_model(model, collate([row]) | combine([media(row + 1)]))

    def batch(model: Model) -> Tensors:
        return to_model(model, collate([0, 1]) | combine([media(1), media(2)]))

    longest = max(len(ids) for ids, _ in laid)
    shifted = tuple(
        tuple((a + longest - len(ids), b + longest - len(ids), m) for a, b, m in spans) for ids, spans in laid
    )
    counts: dict[str, int] = {}
    for start, stop, modality in laid[0][1]:
        counts[modality] = counts.get(modality, 0) + stop - start
    return Tiny(
        name=name,
        build=build,
        inputs=inputs,
        batch=None if no_batch else batch,
        modalities=counts,
        spans=laid[0][1],
        traits=frozenset(traits.split()),
        decoder=decoder,
        no_batch=no_batch,
        constant=frozenset(constant),
        batch_spans=() if no_batch else shifted,
        notes=notes,
        marks=frozenset(marks.split()),
        missing=missing_classes(make),
    )
