"""Stage 2 of the full-size recipes at reduced width: lengths, windows, views, seeds."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_weights import (
    CLIP_OFFICIAL,
    DIT_OFFICIAL,
    WAN,
    dit_config,
    make_weights,
)
from wristaugment.augment.generate import blend_weights
from wristaugment.augment.project import Conditions
from wristaugment.augment.recipe import RECIPES
from wristaugment.augment.video import VideoGenerator, latent_windows, padded_length
from wristaugment.models.encoders import ImageEncoder, PromptEncoder, VideoAutoencoder
from wristaugment.models.flow import Window, sample_windows
from wristaugment.models.released import open_released
from wristaugment.models.video_dit import change_views
from wristaugment.readers.episode import Episode, Record, View
from wristaugment.readers.errors import SourceError

RECIPE = replace(
    RECIPES["official"], wrist_size=(32, 48), clip=9, overlap=4, steps=2, precision="float32"
)


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    root = make_weights(tmp_path_factory.mktemp("weights"), "official")
    return VideoGenerator(
        open_released(root / DIT_OFFICIAL, dit_config("official")),
        VideoAutoencoder.open(root / WAN / "vae"),
        PromptEncoder.open(root / WAN),
        ImageEncoder.open("official", root / CLIP_OFFICIAL),
    )


def scene(steps: int, views: int = 2):
    rng = np.random.default_rng(1)
    anchors = [
        View(f"image_{i}", rng.integers(0, 255, (steps, 20, 30, 3), dtype=np.uint8))
        for i in range(views)
    ]
    color = rng.integers(0, 255, (steps, 32, 48, 3), dtype=np.uint8)
    covered = np.ones((steps, 32, 48), bool)
    maps = Conditions(color, covered, np.ones((steps, 32, 48), np.float32))
    return maps, Episode(Record("train", 0, 7), anchors, "pick up the cube")


@pytest.mark.parametrize("steps", [1, 4, 9, 10, 14])
def test_every_length_comes_out_whole(generator, steps):
    maps, episode = scene(steps)
    seen = []
    frames = generator.generate(maps, episode, RECIPE, 3, seen.append)
    assert frames.shape == (steps, 32, 48, 3) and frames.dtype == np.uint8
    assert sum(seen) == steps
    assert np.array_equal(frames, generator.generate(maps, episode, RECIPE, 3))


def test_seed_words_anchors_and_condition_all_have_a_say(generator):
    maps, episode = scene(9)
    first = generator.generate(maps, episode, RECIPE, 3)
    told = replace(RECIPE, prompt="")
    others = [
        generator.generate(maps, episode, RECIPE, 4),
        generator.generate(maps, episode, told, 3),
        generator.generate(maps, scene(9, views=1)[1], RECIPE, 3),
        generator.generate(scene(9)[0].__class__(255 - maps.color, maps.covered, maps.depth),
                           episode, RECIPE, 3),
        generator.generate(maps, episode, replace(RECIPE, guidance=1.0), 3),
    ]  # fmt: skip
    for other in others:
        assert not np.array_equal(first, other)


def test_more_views_than_embeddings_are_refused_and_can_be_trained_for(generator):
    maps, episode = scene(5, views=3)
    with pytest.raises(SourceError, match=r"record 7: has 3 anchor views .* for 2.*--anchor-keys"):
        generator.generate(maps, episode, RECIPE, 3)
    with torch.random.fork_rng():
        wider = open_wider(generator)
    assert wider.generate(maps, episode, RECIPE, 3).shape == (5, 32, 48, 3)


def open_wider(generator):
    """The same networks with embeddings for a third view."""
    from copy import deepcopy

    dit = deepcopy(generator.dit)
    change_views(dit, 3, torch.Generator().manual_seed(0))
    return replace(generator, dit=dit)


def test_sizes_that_would_be_cropped_are_refused(generator):
    maps, episode = scene(5)
    with pytest.raises(ValueError, match="multiple of 16: resize to 32 or 48"):
        generator.generate(maps, episode, replace(RECIPE, wrist_size=(40, 48)), 3)
    with pytest.raises(ValueError, match=r"4n \+ 1 frames; found 8"):
        generator.generate(maps, episode, replace(RECIPE, clip=8), 3)


def test_windows_cover_the_latents_and_overlap():
    assert padded_length(3, 81) == 81 and padded_length(82, 81) == 85
    recipe = RECIPES["official"]
    assert latent_windows(81, recipe) == [slice(0, 21)]
    windows = latent_windows(padded_length(200, 81), recipe)
    assert windows[0] == slice(0, 21) and windows[-1].stop == (200 - 1 + 3) // 4 + 1
    assert all(w.stop - w.start == 21 for w in windows)
    assert all(b.start <= a.stop - 4 for a, b in pairwise(windows))


class PerFrame:
    """A stand-in for the video DiT whose velocity is the context's first number."""

    dit = SimpleNamespace()

    def __call__(self, latents, timestep, condition, context):
        return torch.zeros_like(latents) + context[:, :1, :1, None, None] + condition


def test_windows_fade_into_each_other_without_a_seam():
    """Two clips that disagree by 1 everywhere: neighbours may differ by a step of the fade only."""
    noise = torch.zeros(1, 1, 9, 2, 2)
    ramp = torch.as_tensor(blend_weights(6, 3))
    parts = [
        Window(slice(0, 6), torch.zeros(1, 1, 1), ramp),
        Window(slice(3, 9), torch.ones(1, 1, 1), ramp),
    ]
    drawn = sample_windows(PerFrame(), noise, noise, parts, None, steps=4, guidance=1.0, shift=1.0)
    line = drawn[0, 0, :, 0, 0]
    assert line[0] == 0 and abs(float(line[-1])) == pytest.approx(1)
    assert float(line.diff().abs().max()) <= 1 / 4 + 1e-6


def test_windows_of_one_opinion_are_one_video():
    torch.manual_seed(0)
    noise, condition = torch.randn(2, 1, 4, 9, 2, 2)
    ramp = torch.as_tensor(blend_weights(6, 3))
    same = torch.zeros(1, 1, 1)
    parts = [Window(slice(0, 6), same, ramp), Window(slice(3, 9), same, ramp)]
    whole = [Window(slice(0, 9), same)]
    apart, together = (
        sample_windows(PerFrame(), noise, condition, w, None, steps=3, guidance=1.0, shift=5.0)
        for w in (parts, whole)
    )
    torch.testing.assert_close(apart, together)
    with pytest.raises(ValueError, match="leave out"):
        sample_windows(PerFrame(), noise, condition, parts[:1], None, steps=3, guidance=1.0)
