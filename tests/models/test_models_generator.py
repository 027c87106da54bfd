"""The video DiT: what it starts as, what it refuses, how it samples."""

from dataclasses import replace

import pytest
import torch
from wristaugment.models.conditioning import ByteTextEncoder
from wristaugment.models.generator import Condition, GeneratorConfig, WristGenerator, sample

TINY = GeneratorConfig(
    layers=1, heads=2, head_dim=16, ffn_dim=32, text_dim=32, detail=8, frames=4, mount=(8, 12)
)


@pytest.fixture(scope="module")
def network() -> WristGenerator:
    torch.manual_seed(0)
    return WristGenerator(TINY).eval()


@pytest.fixture()
def condition(network) -> Condition:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.rand(*shape, generator=generator)
    return Condition(
        filled=draw(1, 3, 3, 16, 24) * 2 - 1,
        covered=(draw(1, 3, 1, 16, 24) > 0.3).float(),
        nearness=draw(1, 3, 1, 16, 24),
        anchors=draw(1, 3, 2, 3, 20, 32),
        text=network.text.tokenize(["pick up the red cube"]),
        gripper=torch.full((1, 3), 0.5),
    )


def stirred(network: WristGenerator) -> WristGenerator:
    """A copy whose output layers are not zero."""
    torch.manual_seed(2)
    other = WristGenerator(TINY).eval()
    with torch.no_grad():
        for module in (other.dit.proj_out, other.detail.last):
            torch.nn.init.normal_(module.weight, std=0.05)
    return other


def test_untrained_it_returns_the_condition_map(network, condition):
    noise = torch.randn(1, 3, 3, 16, 24)
    for steps in (1, 3):
        clip = sample(network, condition, noise, steps=steps, guidance=2.0)
        torch.testing.assert_close(clip, condition.filled, atol=1e-5, rtol=0)


def test_every_input_reaches_the_output(network, condition):
    generator = stirred(network)
    noise = torch.randn(1, 3, 3, 16, 24)

    def run(c: Condition) -> torch.Tensor:
        with torch.no_grad():
            context, _ = generator.encode_context(c)
            return generator(noise, torch.ones(1), c, context)

    before = run(condition)
    for name, value in {
        "filled": condition.filled * 0.5,
        "covered": 1 - condition.covered,
        "nearness": 1 - condition.nearness,
        "anchors": 1 - condition.anchors,
        "gripper": -condition.gripper,
        "text": generator.text.tokenize(["push the blue bowl"]),
    }.items():
        assert (run(replace(condition, **{name: value})) - before).abs().max() > 1e-5, name


def test_pure_noise_is_shut_out_and_less_of_it_is_not(network, condition):
    generator = stirred(network)
    one, other = torch.randn(2, 1, 3, 3, 16, 24)
    with torch.no_grad():
        context, _ = generator.encode_context(condition)
        drawn = [[generator(x, torch.tensor([sigma]), condition, context) for x in (one, other)]
                 for sigma in (1.0, 0.5)]  # fmt: skip
    assert torch.equal(*drawn[0])
    assert (drawn[1][0] - drawn[1][1]).abs().max() > 1e-4


def test_the_mount_is_learnt_by_place(network, condition):
    generator = stirred(network)
    noise = torch.zeros(1, 3, 3, 16, 24)
    with torch.no_grad():
        context, _ = generator.encode_context(condition)
        before = generator(noise, torch.ones(1), condition, context)
        generator.mount[:, :, :2] = 3.0  # of 8 rows: the upper quarter
        after = generator(noise, torch.ones(1), condition, context)
    change = (after - before).abs().amax((0, 1, 2, 4))
    assert change[:4].max() > 3 * change[12:].max()


def test_guidance_of_one_needs_no_negative_branch_and_others_change_the_clip(network, condition):
    generator = stirred(network)
    noise = torch.randn(1, 3, 3, 16, 24)
    plain = sample(generator, condition, noise, steps=2, guidance=1.0)
    nearly = sample(generator, condition, noise, steps=2, guidance=1.0 + 1e-6)
    strong = sample(generator, condition, noise, steps=2, guidance=4.0)
    torch.testing.assert_close(plain, nearly, atol=1e-4, rtol=0)
    assert (strong - plain).abs().max() > 1e-4


def test_sizes_that_would_be_cropped_are_refused(network):
    with pytest.raises(ValueError, match="multiples of 8; found 20x24"):
        network.check_size(3, 20, 24)
    with pytest.raises(ValueError, match="4 frames at most; found 5"):
        network.check_size(5, 16, 24)


def test_text_is_bytes_and_padding_is_silent():
    encoder = ByteTextEncoder(32, length=8)
    tokens = encoder.tokenize(["ab", "", "éa-long-one"])
    assert tokens[0].tolist() == [98, 99, 0, 0, 0, 0, 0, 0]
    assert tokens[2, :2].tolist() == [0xC3 + 1, 0xA9 + 1] and (tokens[2] > 0).all()
    out = encoder(tokens)
    assert torch.isfinite(out).all()
    assert not out[0, 2:].any() and not out[1].any()
