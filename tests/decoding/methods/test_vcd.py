from __future__ import annotations

import pytest
import torch

from limelight.decoding.generate import generate
from limelight.decoding.methods.vcd import diffused, noise_like, vcd
from limelight.errors import SettingError
from limelight.types import Prompt
from tests.decoding.peers import TOKENS, check_against_twin, double, emitted, inputs_of, run
from tests.slow_twins import vcd as twin

# (family, the tensor of media, rows of it that belong to each medium)
CASES = [
    ("llava", "pixel_values", [1]),
    ("internvl", "pixel_values", [1]),
    ("gemma3", "pixel_values", [1]),
    ("qwen2_5_vl", "pixel_values", [32]),
    ("qwen2_5_vl_video", "pixel_values_videos", None),
    ("qwen2_audio", "input_features", [1]),
]


@pytest.mark.parametrize(("name", "key", "media"), CASES, ids=[c[0] for c in CASES])
def test_equals_the_slow_twin(name: str, key: str, media: list[int] | None) -> None:
    adapter, inputs = double(name), inputs_of(name)
    out = run(adapter, inputs, vcd(alpha=0.7, beta=0.05, noise_step=600, seed=3))
    tokens = emitted(out, inputs)
    noisy = twin.noised(inputs, media or [len(inputs[key])], key, 600, 3)
    wanted = [twin.vcd(adapter.model, inputs, noisy, tokens[:, :t], 0.7, 0.05) for t in range(TOKENS)]
    check_against_twin(out, wanted, rows=1)


def test_noise_matters_and_follows_its_seed() -> None:
    adapter, inputs = double("llava"), inputs_of("llava")
    first, again, other = (run(adapter, inputs, vcd(seed=s, beta=0), n=1).logits[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_missing_processor_tensors_are_named() -> None:
    adapter, inputs = double("llava"), inputs_of("llava")
    with pytest.raises(SettingError, match=r"tensors=inputs"):
        run(adapter, inputs, vcd(), bind={"tensors": None})


def test_tensors_of_another_prompt_are_refused() -> None:
    adapter, inputs = double("llava"), inputs_of("llava")
    with pytest.raises(SettingError, match="another prompt"):
        run(adapter, inputs, vcd(), bind={"tensors": inputs_of("llava", "other")})


def test_sound_needs_no_tensors() -> None:
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio")
    bound, free = (run(adapter, inputs, vcd(), n=1, bind={"tensors": t}).logits[0] for t in (inputs, None))
    assert torch.equal(bound, free)


def test_positions_and_masks_are_no_media() -> None:
    """Qwen3-Omni's position ids are fractions: noise on them would go unnoticed."""
    adapter, inputs = double("qwen3_omni_thinker"), inputs_of("qwen3_omni_thinker")
    out = run(adapter, inputs, vcd(alpha=0.7, beta=0.05, noise_step=600, seed=3))
    noisy = twin.noised(inputs, [len(inputs["pixel_values"])], "pixel_values", 600, 3)
    noisy = twin.noised(noisy, [1], "input_features", 600, 3)
    tokens = emitted(out, inputs)
    check_against_twin(
        out, [twin.vcd(adapter.model, inputs, noisy, tokens[:, :t], 0.7, 0.05) for t in range(TOKENS)], 1
    )


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_several_answers_a_prompt(name: str) -> None:
    adapter, inputs = double(name), inputs_of(name)
    alone = run(adapter, inputs, vcd(), n=2).logits
    out = run(adapter, inputs, vcd(), n=2, do_sample=True, num_return_sequences=2, bind={"seed": 1})
    assert out.sequences.shape[0] == 2
    torch.testing.assert_close(out.logits[0], alone[0].expand(2, -1))


def test_generate_hands_the_tensors_over() -> None:
    adapter, inputs = double("llava"), inputs_of("llava")
    prompt = Prompt(inputs, adapter.words(inputs), adapter.spans(inputs))
    answer = generate(adapter, messages=prompt, strategy=vcd(), max_new_tokens=2)
    assert answer.strategy == "vcd"
    assert list(answer.token_ids) == emitted(run(adapter, inputs, vcd(), n=2), inputs)[0].tolist()


def test_diffusion_ends_in_noise() -> None:
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(diffused(x, noise, 0), x, atol=0.02, rtol=0.01)
    late = diffused(x, noise, 999)
    assert float((late - noise).abs().max()) < float((late - x).abs().max())


def test_each_medium_meets_the_noise_it_meets_alone() -> None:
    patches, grid = torch.zeros(24, 5), torch.tensor([[1, 2, 4], [1, 4, 4]])
    noise = noise_like(patches, {"image_grid_thw": grid}, 0)
    alone = noise_like(patches[8:], {"image_grid_thw": grid[1:]}, 0)
    assert torch.equal(noise[8:], alone)
    packed = noise_like(torch.zeros(1, 3, 4, 96), {"target_sizes": grid[:, 1:]}, 0)
    assert torch.equal(packed[..., 32:], noise_like(torch.zeros(1, 3, 4, 64), {"target_sizes": grid[1:, 1:]}, 0))
    tiles = noise_like(torch.zeros(2, 3, 3, 8, 8), {}, 0)
    assert torch.equal(tiles[0], tiles[1])
    assert not torch.equal(tiles[0, 0], tiles[0, 1])
    assert torch.equal(tiles[:1, :2], noise_like(torch.zeros(1, 2, 3, 8, 8), {}, 0))


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"beta": 1.5}, {"noise_step": 1000}, {"noise_step": 0.5}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="vcd"):
        vcd(**wrong)
