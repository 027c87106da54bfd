"""The video DiT: what it starts as, what it refuses, how it samples."""

import math
from dataclasses import replace

import pytest
import torch
from wristaugment.models.conditioning import ByteTextEncoder
from wristaugment.models.generator import (
    STAY,
    Condition,
    GeneratorConfig,
    WristGenerator,
    sample,
)
from wristaugment.models.sweep import SweptViews, sweep

TINY = GeneratorConfig(
    layers=1, heads=2, head_dim=16, ffn_dim=32, text_dim=32, detail=12, frames=4, mount=(8, 16)
)
H, W = 16, 32
DOWN = torch.diag(torch.tensor([1.0, -1, -1, 1]))


@pytest.fixture(scope="module")
def network() -> WristGenerator:
    torch.manual_seed(0)
    return WristGenerator(TINY).eval()


@pytest.fixture()
def condition(network) -> Condition:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.rand(*shape, generator=generator)
    anchor, hand = DOWN.clone(), DOWN.clone()
    anchor[2, 3], hand[2, 3] = 0.8, 0.4
    tool = DOWN.clone()
    tool[0, 3], tool[2, 3] = 0.08, 0.45
    anchors = draw(1, 3, 2, 3, 20, 32)
    return Condition(
        filled=draw(1, 3, 3, H, W) * 2 - 1,
        covered=(draw(1, 3, 1, H, W) > 0.3).float(),
        nearness=draw(1, 3, 1, H, W),
        anchors=anchors,
        text=network.text.tokenize(["pick up the red cube"]),
        gripper=torch.full((1, 3), 0.5),
        views=SweptViews(
            colors=anchors,
            K=torch.tensor([[16.0, 0, 16], [0, 16, 10], [0, 0, 1]]).expand(1, 3, 2, 3, 3),
            pose=anchor.expand(1, 3, 2, 4, 4),
            depth=0.7 + 0.1 * draw(1, 3, 2, 10, 16),
            wrist_K=torch.tensor([[16.0, 0, 16], [0, 16, 8], [0, 0, 1]]).expand(1, 3, 3, 3),
            wrist_pose=hand.expand(1, 3, 4, 4),
            tool=tool.expand(1, 3, 4, 4),
        ),
    )


def stirred(network: WristGenerator, config: GeneratorConfig = TINY) -> WristGenerator:
    """One whose output layers are not zero."""
    torch.manual_seed(2)
    other = WristGenerator(config).eval()
    with torch.no_grad():
        for module in (other.detail.last, other.detail.choose):
            if module is not None:
                torch.nn.init.normal_(module.weight, std=0.2)
        for module in (other.detail.middle, other.detail.low):
            torch.nn.init.normal_(module.time.mix.weight, std=0.1)
    return other


def run(generator: WristGenerator, c: Condition, noise=None, sigma: float = 1.0) -> torch.Tensor:
    noise = torch.zeros(1, 3, 3, H, W) if noise is None else noise
    with torch.no_grad():
        context, _ = generator.encode_context(c)
        return generator(noise, torch.tensor([sigma]), c, context, generator.look(c))


def test_untrained_it_returns_the_condition_map_or_nearly_so(network, condition):
    noise = torch.randn(1, 3, 3, H, W)
    for steps in (1, 3):
        clip = sample(network, replace(condition, views=None), noise, steps=steps, guidance=2.0)
        torch.testing.assert_close(clip, condition.filled, atol=1e-5, rtol=0)
        clip = sample(network, condition, noise, steps=steps, guidance=1.0)
        # Every colour that the sweep offers has the same small weight beside the map.
        swept = sweep(condition.views, (H, W))[..., :3, :, :].flatten(2, 3)
        share = math.exp(STAY) / (math.exp(STAY) + swept.shape[2])
        expected = share * condition.filled + (1 - share) * swept.mean(dim=2)
        assert share > 0.7 and not torch.equal(clip, condition.filled)
        torch.testing.assert_close(clip, expected, atol=1e-4, rtol=0)


def test_every_input_reaches_the_output(network, condition):
    generator = stirred(network)
    before = run(generator, condition)
    swept = condition.views
    for name, value in {
        "filled": condition.filled * 0.5,
        "covered": 1 - condition.covered,
        "nearness": 1 - condition.nearness,
        "anchors": 1 - condition.anchors,
        "gripper": -condition.gripper,
        "text": generator.text.tokenize(["push the blue bowl"]),
        "views": replace(swept, colors=1 - swept.colors),
    }.items():
        assert (run(generator, replace(condition, **{name: value})) - before).abs().max() > 1e-5, (
            name
        )
    for name, value in {
        "depth": swept.depth + 0.02,
        "wrist_pose": swept.pose[:, :, 0],
        "tool": swept.tool + 0.01,
        "tool_unknown": None,
    }.items():
        name = name.partition("_unknown")[0]
        changed = replace(condition, views=replace(swept, **{name: value}))
        assert (run(generator, changed) - before).abs().max() > 1e-5, name


@pytest.mark.parametrize(
    ("part", "silent"),
    [
        ("map", ["filled", "covered", "nearness", "views"]),
        ("clip", ["anchors"]),
        ("text", ["text"]),
        ("sweep", ["views"]),
    ],
)
def test_what_a_network_was_built_without_does_not_reach_its_output(condition, part, silent):
    generator = stirred(None, replace(TINY, without=(part,)))
    before = run(generator, condition)
    for name, value in {
        "filled": condition.filled * 0.5,
        "covered": 1 - condition.covered,
        "nearness": 1 - condition.nearness,
        "anchors": 1 - condition.anchors,
        "text": generator.text.tokenize(["push the blue bowl"]),
        "views": replace(condition.views, colors=1 - condition.views.colors),
    }.items():
        change = (run(generator, replace(condition, **{name: value})) - before).abs().max()
        assert (change == 0) == (name in silent), name


def test_no_such_part_is_refused():
    with pytest.raises(ValueError, match="cannot be built without depth"):
        GeneratorConfig(without=("depth",))


def test_anchors_are_taken_in_any_order_and_number(network, condition):
    generator = stirred(network)
    anonymous = replace(condition, anchors=condition.anchors.mean(2, keepdim=True))

    def swept(order: list[int]) -> torch.Tensor:
        views = condition.views
        picked = {k: getattr(views, k)[:, :, order] for k in ("colors", "K", "pose", "depth")}
        return run(generator, replace(anonymous, views=replace(views, **picked)))

    torch.testing.assert_close(swept([0, 1]), swept([1, 0]))
    assert (swept([0]) - swept([1])).abs().max() > 1e-3
    assert torch.isfinite(swept([0, 1, 0])).all()


def test_frames_of_a_clip_hear_their_neighbours(network, condition):
    generator = stirred(network)
    before = run(generator, condition)
    filled = condition.filled.clone()
    filled[:, 2] *= 0.5
    change = (run(generator, replace(condition, filled=filled)) - before).abs().amax((0, 2, 3, 4))
    assert (change[:2] > 1e-5).all() and change[2] > change[:2].max()


def test_pure_noise_is_shut_out_and_less_of_it_is_not(network, condition):
    generator = stirred(network)
    one, other = torch.randn(2, 1, 3, 3, H, W)
    drawn = [[run(generator, condition, x, sigma) for x in (one, other)] for sigma in (1.0, 0.5)]
    assert torch.equal(*drawn[0])
    assert (drawn[1][0] - drawn[1][1]).abs().max() > 1e-4


def test_the_mount_is_learnt_by_place(network, condition):
    generator = stirred(network)
    before = run(generator, condition)
    with torch.no_grad():
        generator.mount[:, :, :2] = 3.0  # of 8 rows: the upper quarter
    change = (run(generator, condition) - before).abs().amax((0, 1, 2, 4))
    assert change[:4].max() > 3 * change[12:].max()


def test_guidance_of_one_needs_no_negative_branch_and_others_change_the_clip(network, condition):
    generator = stirred(network)
    noise = torch.randn(1, 3, 3, H, W)
    plain = sample(generator, condition, noise, steps=2, guidance=1.0)
    nearly = sample(generator, condition, noise, steps=2, guidance=1.0 + 1e-6)
    strong = sample(generator, condition, noise, steps=2, guidance=4.0)
    torch.testing.assert_close(plain, nearly, atol=1e-4, rtol=0)
    assert (strong - plain).abs().max() > 1e-4


def test_sizes_that_would_be_cropped_are_refused(network):
    with pytest.raises(ValueError, match="multiples of 16; found 20x32"):
        network.check_size(3, 20, 32)
    with pytest.raises(ValueError, match="4 frames at most; found 5"):
        network.check_size(5, H, W)


def test_text_is_bytes_and_padding_is_silent():
    encoder = ByteTextEncoder(32, length=8)
    tokens = encoder.tokenize(["ab", "", "éa-long-one"])
    assert tokens[0].tolist() == [98, 99, 0, 0, 0, 0, 0, 0]
    assert tokens[2, :2].tolist() == [0xC3 + 1, 0xA9 + 1] and (tokens[2] > 0).all()
    out = encoder(tokens)
    assert torch.isfinite(out).all()
    assert not out[0, 2:].any() and not out[1].any()
