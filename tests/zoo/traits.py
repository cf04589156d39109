"""What a text stack is made of, read off its modules and config: the claims of the rows are checked against this."""

from typing import Any

import torch
from torch import Tensor, nn

from .base import Model, Tensors, Tiny, head_of


def norm_kind(norm: nn.Module) -> str:
    """`rmsnorm`, `rmsnorm_1p`, `layernorm` or `norm_other`, by what the module does to a random vector."""
    weight = norm.weight
    x = torch.linspace(-1.0, 3.0, weight.numel(), dtype=weight.dtype).roll(3)
    with torch.no_grad():
        y = norm(x[None, None])[0, 0]
    bias = getattr(norm, "bias", None)
    y = y if bias is None else y - bias
    scaled, centred = x / x.square().mean().sqrt(), (x - x.mean()) / x.var(correction=0).sqrt()
    wants = {"rmsnorm": scaled * weight, "rmsnorm_1p": scaled * (1 + weight), "layernorm": centred * weight}
    return next((kind for kind, want in wants.items() if torch.allclose(y, want, atol=1e-3)), "norm_other")


def observed(row: Tiny, model: Model) -> frozenset[str]:
    """The traits of `row`'s text stack that its modules and config show."""
    decoder = model.get_submodule(row.decoder)
    config: Any = decoder.config
    modules = {name: module for name, module in decoder.layers.named_modules() if name}
    leaves = {name.rsplit(".", 1)[-1] for name in modules}
    parameters = {name.rsplit(".", 1)[-1] for name, _ in decoder.layers.named_parameters()} | leaves
    found: set[str] = set()

    groups = {m.num_key_value_groups for m in modules.values() if hasattr(m, "num_key_value_groups")}
    keys = [m for m in modules.values() if hasattr(m, "k_proj") and hasattr(m, "head_dim")]
    kinds = set(getattr(config, "layer_types", None) or ())
    rope = getattr(config, "rope_parameters", None) or {}
    width = config.hidden_size
    norms = [
        m for part in (*decoder.layers, decoder) for m in part.children()
        if getattr(m, "weight", None) is not None and m.weight.ndim == 1 and m.weight.numel() == width
    ]  # fmt: skip
    block_norms = [m for n, m in decoder.layers[-1].named_children() if "norm" in n]
    claims = {
        "gqa": max(groups, default=1) > 1,
        "mqa": any(m.k_proj.out_features == m.head_dim for m in keys),
        "bias": any(isinstance(m, nn.Linear) and m.bias is not None for m in modules.values()),
        "qk_norm": bool(leaves & {"q_norm", "q_layernorm", "q_layer_norm", "query_layernorm", "qk_norm"}),
        "gated": bool(parameters & {"gate_proj", "gate_up_proj", "w1"}),
        "fc12": bool(leaves & {"fc1", "dense_h_to_4h"}),
        "fused_gate_up": any(n.endswith("gate_up_proj") and isinstance(m, nn.Linear) for n, m in modules.items()),
        "fused_qkv": bool(leaves & {"qkv_proj", "query_key_value", "qkv"}),
        "moe": "experts" in leaves,
        "mrope": any("mrope_section" in part for part in (rope, *rope.values()) if isinstance(part, dict)),
        "sliding": any("sliding" in kind for kind in kinds),
        "chunked": bool(kinds & {"chunked_attention"}),
        "linear_attention": bool(kinds & {"linear_attention", "conv", "mamba"}),
        "softcap": getattr(config, "attn_logit_softcapping", None) is not None,
        "sandwich": len(block_norms) > 2,
        "parallel": len(block_norms) == 1 and any("mlp" in n for n, _ in decoder.layers[-1].named_children()),
        "mla": getattr(config, "kv_lora_rank", None) is not None,
        "sparse": any("indexer" in name for name in modules),
        "streams": any(hasattr(config, name) for name in ("hc_mult", "hc_count", "altup_num_inputs")),
        "multipliers": hasattr(config, "residual_multiplier") or hasattr(config, "logit_scale"),
        "kv_shared": bool(getattr(config, "num_kv_shared_layers", 0)),
        "per_layer_inputs": bool(getattr(config, "hidden_size_per_layer_input", 0)),
        "deepstack": bool(
            getattr(getattr(model.config, "vision_config", None), "deepstack_visual_indexes", None)
            or getattr(model.config, "deepstack_layer_map", None)
        ),
        "qformer": any("qformer" in name for name, _ in model.named_modules()),
        "cross_attention": any("cross_attn" in name or "encoder_attn" in name for name, _ in decoder.named_modules()),
    }
    found |= {name for name, holds in claims.items() if holds}
    found |= {norm_kind(m) for m in norms}
    return frozenset(found)


def stream(row: Tiny, model: Model, inputs: Tensors, change: tuple[int, float] = (0, 0.0)) -> tuple[Tensor, Tensor]:
    """What enters the first layer and what leaves the last. Shapes: (..., S, D).

    `change` adds a number to one position of what enters. Where a family keeps several residual streams, their axis
    counts among the leading ones.
    """
    layers = model.get_submodule(row.decoder).layers
    seen: dict[str, Tensor] = {}
    length = inputs["input_ids"].shape[1]

    def along(hidden: Tensor) -> Tensor:
        return hidden.movedim(hidden.shape.index(length), -2)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        seen["first"] = along(hidden)
        seen["first"][..., change[0], :] += change[1]
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        seen["last"] = along(output[0] if isinstance(output, tuple) else output)

    hooks = [
        layers[0].register_forward_pre_hook(enter, with_kwargs=True), layers[-1].register_forward_hook(leave)
    ]  # fmt: skip
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen["first"], seen["last"]


def sees_ahead(row: Tiny, model: Model) -> bool:
    """Whether the first position of the first run feels a change of its last one, so the mask is not causal."""
    start, stop, _ = row.spans[0] if row.spans else (0, 2, "")
    inputs = row.inputs(model)
    before, after = (stream(row, model, inputs, change=(stop - 1, by))[1] for by in (0.0, 1.0))
    # Not equal to the bit: experts batch the tokens they share, and the size of a product may change its rounding.
    return not torch.allclose(before[..., start, :], after[..., start, :], rtol=1e-5, atol=1e-5)


FACTS = frozenset({"ids_at_decoder", "decoder_extras", "logits_after_head", "own_generate"})


def facts(row: Tiny, model: Model) -> frozenset[str]:
    """How the text stack is called, found by calling it again.

    ids_at_decoder: it gets token ids and places the media itself. decoder_extras: inputs_embeds, attention_mask and
    position_ids do not reproduce its output, it needs its other keyword arguments too. logits_after_head: the logits
    are not the output embeddings' (soft-cap, scale, barred ids). own_generate: the class overrides generate().
    """
    decoder = model.get_submodule(row.decoder)
    seen: dict[str, Any] = {}

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen.update(kwargs, hidden=output[0])

    hook = decoder.register_forward_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            logits = model(**row.inputs(model)).logits
            hook.remove()
            found = {"own_generate"} if "generate" in vars(type(model)) else set()
            if not torch.allclose(head_of(model)(seen["hidden"]), logits, atol=1e-5):
                found.add("logits_after_head")
            if seen.get("inputs_embeds") is None:
                return frozenset(found | {"ids_at_decoder"})
            basis = {key: seen.get(key) for key in ("inputs_embeds", "attention_mask", "position_ids")}
            try:
                again = decoder(**basis)[0]
            except RuntimeError:
                again = None
    finally:
        hook.remove()
    if again is None or not torch.allclose(again, seen["hidden"], atol=1e-5):
        found.add("decoder_extras")
    return frozenset(found)
