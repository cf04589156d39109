"""One side of `bench.attribution` in its own process: replies to "time" and "memory" on its input with one number each.

Runs in limelight's environment (kinds plain, ours) and in another one (kinds lxt-plain, lxt), so it imports only what its
kind needs.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

TEXT = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {600: 576, 2400: 2304, 8192: 2304}  # prompt tokens -> image tokens among them
IMAGE = 31999


def llava(tokens: int) -> tuple[Any, dict[str, Any]]:
    """A LLaVA with random weights, and a prompt."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    side = round(IMAGES[tokens] ** 0.5)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=side * 14, patch_size=14),
        text_config=LlamaConfig(**TEXT, vocab_size=32000, max_position_embeddings=8192),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    words = torch.randint(5, 30000, (1, tokens - IMAGES[tokens]), generator=torch.Generator().manual_seed(1))
    ids = torch.cat([words[:, :8], torch.full((1, IMAGES[tokens]), IMAGE), words[:, 8:]], dim=1)
    pixels = torch.randn(1, 3, side * 14, side * 14, generator=torch.Generator().manual_seed(2))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def plain(tokens: int) -> Callable[[], Any]:
    """The gradient of the likeliest logit by the merged embeddings, towers without a graph, weights frozen, sdpa."""
    model, inputs = llava(tokens)
    model.requires_grad_(False)
    leaf: list[torch.Tensor] = []

    def merged(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        leaf[:] = [kwargs["inputs_embeds"].detach().requires_grad_(True)]
        return args, kwargs | {"inputs_embeds": leaf[0]}

    model.get_decoder().register_forward_pre_hook(merged, with_kwargs=True)

    def run() -> Any:
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
        (gradient,) = torch.autograd.grad(logits.max(), leaf[0])
        return (gradient * leaf[0].detach()).sum(-1)

    return run


def ours(tokens: int) -> Callable[[], Any]:
    import limelight

    model, inputs = llava(tokens)
    return lambda: limelight.attribute(model, inputs)


def llama(tokens: int, *, patched: bool) -> Callable[[], Any]:
    """The same text stack alone on embeddings; ``patched`` by lxt's AttnLRP."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama import modeling_llama

    if patched:
        from lxt.efficient import monkey_patch

        monkey_patch(modeling_llama)
    torch.manual_seed(0)
    config = LlamaConfig(**TEXT, vocab_size=32000, max_position_embeddings=8192, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    embeds = torch.randn(1, tokens, TEXT["hidden_size"], generator=torch.Generator().manual_seed(1)) * 0.02

    def run() -> Any:
        x = embeds.clone().requires_grad_(True)
        logits = model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[0, -1]
        logits.max().backward()
        return (x.grad * x.detach()).sum(-1)

    return run


KINDS: dict[str, Callable[[int], Callable[[], Any]]] = {
    "plain": plain,
    "ours": ours,
    "lxt-plain": lambda tokens: llama(tokens, patched=False),
    "lxt": lambda tokens: llama(tokens, patched=True),
}


def peak(run: Callable[[], Any]) -> int:
    """Most bytes that torch's allocator held at once beyond what it held before (its own log; kernels' buffers too)."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results: Any = recorded.profiler.kineto_results  # type: ignore[union-attr]
    steps = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    now = most = 0
    for _, size in sorted(steps, key=lambda s: s[0]):
        now += size
        most = max(most, now)
    return most


def main() -> None:
    kind, tokens = sys.argv[1], int(sys.argv[2])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run = KINDS[kind](tokens)
    run()  # the first run surveys, checks and fills caches
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print(peak(run), flush=True)
        else:
            start = time.process_time()
            run()
            print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
