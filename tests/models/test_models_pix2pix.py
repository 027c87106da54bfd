"""Pix2Pix: shapes at any size, two losses that do not mix, and that it learns what it is shown."""

import pytest
import torch
from wristaugment.models.pix2pix import Pix2Pix, Pix2PixConfig, Pix2PixGenerator

SMALL = Pix2PixConfig(size=(16, 32), views=2, width=8)


def batch(config, n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, config.views, 3, *config.size)
    anchors = torch.rand(shape, generator=generator) * 2 - 1
    return anchors, torch.rand(n, 3, *config.size, generator=generator) * 2 - 1


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (72, 128), (90, 161)])
def test_pictures_have_the_size_that_was_asked_for(size):
    config = Pix2PixConfig(size=size, views=1, width=4)
    anchors, _ = batch(config)
    made = Pix2PixGenerator(config).eval()(anchors)
    assert made.shape == (3, 3, *size) and made.abs().max() <= 1


def test_it_is_small_enough_for_two_cores():
    network = Pix2PixGenerator(Pix2PixConfig())
    assert 2e6 < sum(p.numel() for p in network.parameters()) < 6e6


def test_a_picture_depends_on_its_own_views_alone():
    torch.manual_seed(0)
    network = Pix2PixGenerator(SMALL).eval()
    anchors, _ = batch(SMALL)
    whole, alone = network(anchors), network(anchors[1:2])
    torch.testing.assert_close(whole[1:2], alone)
    assert (whole[0] - whole[1]).abs().max() > 0
    anchors[1, 1] = 0.0  # every view counts
    assert (network(anchors)[1] - whole[1]).abs().max() > 0


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_each_network_learns_from_its_own_loss_alone():
    torch.manual_seed(0)
    network = Pix2Pix(SMALL).eval()  # without dropout, so that every call draws the same
    anchors, truth = batch(SMALL)
    found = gradients(network, network.losses(anchors, truth)["loss"])

    made = network.generator(anchors)
    real, fake = (network.judge(anchors, x) for x in (truth, made.detach()))
    softplus = torch.nn.functional.softplus
    judge = gradients(network, (softplus(-real).mean() + softplus(fake).mean()) / 2)
    assert all(name.startswith("judge.") for name in judge)

    made = network.generator(anchors)
    fooled = softplus(-network.judge(anchors, made)).mean()
    generator = gradients(network, fooled + 100 * (made - truth).abs().mean())
    generator = {k: v for k, v in generator.items() if k.startswith("generator.")}

    assert found.keys() == judge.keys() | generator.keys()
    for name, value in (judge | generator).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_it_learns_a_picture_and_the_judge_tells_the_made_one():
    torch.manual_seed(0)
    network = Pix2Pix(SMALL)
    anchors, truth = (x[..., ::8, ::8] for x in batch(SMALL, n=2))
    anchors = anchors.repeat_interleave(8, -1).repeat_interleave(8, -2)
    truth = truth.repeat_interleave(8, -1).repeat_interleave(8, -2)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, betas=(0.5, 0.999))
    told = []
    for _ in range(80):
        values = network.losses(anchors, truth)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        told.append({name: float(value.detach()) for name, value in values.items()})
    assert told[-1]["l1"] < 0.5 * told[0]["l1"]
    assert min(line["judge"] for line in told) < 0.5 * told[0]["judge"]
