"""The track head: what tracks must be like whatever the weights."""

import pytest
import torch
from wristaugment.models import track
from wristaugment.models.track import (
    Tracker,
    TrackHead,
    correlate,
    flow_embedding,
    place_embedding,
    sample,
)


def tiny_tracker(**more) -> Tracker:
    torch.manual_seed(0)
    sizes = {"hidden": 16, "depth": 2, "heads": 2, "virtual": 4, "levels": 3, "radius": 1}
    return Tracker(8, **{**sizes, "iterations": 3, **more}).eval()


def plain_sample(plane, x, y):
    """Bilinear with zeros outside."""
    total = 0.0
    x0, y0 = int(torch.floor(torch.tensor(x))), int(torch.floor(torch.tensor(y)))
    for i, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
        for j, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
            if 0 <= i < plane.shape[1] and 0 <= j < plane.shape[0]:
                total += wx * wy * float(plane[j, i])
    return total


def test_correlation_agrees_with_a_plain_loop():
    torch.manual_seed(1)
    maps = torch.randn(1, 2, 4, 6, 8)
    coarse = torch.nn.functional.avg_pool2d(maps[0], 2)[None]
    features, places = torch.randn(1, 2, 3, 4), torch.rand(1, 2, 3, 2) * torch.tensor([7.0, 5])
    found = correlate([maps, coarse], features, places, 1).view(1, 2, 3, 2, 3, 3)
    for s in range(2):
        for n in range(3):
            for level, plane in enumerate((maps, coarse)):
                similar = torch.einsum("chw,c->hw", plane[0, s], features[0, s, n]) / 2
                x, y = (places[0, s, n] / 2**level).tolist()
                for i in range(3):
                    for j in range(3):
                        # The first axis of the window moves x, as in the public weights.
                        expected = plain_sample(similar, x + i - 1, y + j - 1)
                        assert found[0, s, n, level, i, j].item() == pytest.approx(
                            expected, abs=1e-5
                        )


def test_correlation_in_parts_is_the_same(monkeypatch):
    torch.manual_seed(1)
    maps, features = torch.randn(2, 3, 4, 6, 8), torch.randn(2, 3, 7, 4)
    pyramid = [maps, torch.nn.functional.avg_pool2d(maps.flatten(0, 1), 2).unflatten(0, (2, 3))]
    places, sizes = torch.rand(2, 3, 7, 2) * torch.tensor([7.0, 5]), []
    whole = correlate(pyramid, features, places, 1)
    monkeypatch.setattr(track, "SIMILARITIES", 2 * 3 * 48 * 2)  # two points at a time

    def noted(maps, *rest):
        sizes.append(len(maps))
        return sample(maps, *rest)

    monkeypatch.setattr(track, "sample", noted)
    torch.testing.assert_close(correlate(pyramid, features, places, 1), whole)
    assert max(sizes) == 2 * 3 * 2


def test_samples_outside_are_zero_or_the_border():
    plane = torch.arange(12.0).view(1, 1, 3, 4)
    far = torch.tensor([[[[50.0, 50.0], [1.0, 1.0]]]])
    assert sample(plane, far, "zeros").flatten().tolist() == pytest.approx([0, 5])
    assert sample(plane, far, "border").flatten().tolist() == pytest.approx([11, 5])


def test_flow_embedding_of_no_flow_is_sines_of_zero():
    found = flow_embedding(torch.zeros(2, 2), 8)
    assert found.shape == (2, 16)
    assert found[0].tolist() == [0, 1] * 8


def test_place_embedding_lies_between_its_neighbours():
    places = torch.tensor([[[2.0, 3], [3, 3], [2.25, 3], [90, -4], [6, 0]]])
    left, right, middle, outside, corner = place_embedding(places, (6, 7), 20)[0]
    torch.testing.assert_close(middle, 0.75 * left + 0.25 * right, rtol=0, atol=1e-5)
    torch.testing.assert_close(outside, corner)
    torch.testing.assert_close(left[:2], torch.tensor([2.0, 2 * 10000**-0.2]).sin())  # of x first


@pytest.mark.parametrize("views", [1, 2, 3])
def test_the_first_view_keeps_the_queries(views):
    queries = torch.rand(2, 5, 2) * 10
    with torch.no_grad():
        places, visible, sure = tiny_tracker()(torch.randn(2, views, 8, 12, 16), queries)
    assert places.shape == (3, 2, views, 5, 2)
    assert torch.equal(places[:, :, 0], queries.expand(3, -1, -1, -1))
    for share in (visible, sure):
        assert share.shape == (2, views, 5) and (share > 0).all() and (share < 1).all()


def test_timesteps_do_not_see_each_other():
    maps, queries = torch.randn(2, 2, 8, 12, 16), torch.rand(2, 5, 2) * 10
    network = tiny_tracker(iterations=1)
    with torch.no_grad():
        both = network(maps, queries)[1]
        alone = network(maps[:1], queries[:1])[1]
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-4)


def test_maps_too_small_for_the_levels_are_refused():
    with pytest.raises(ValueError, match="at least 16 pixels a side; found 12x16"):
        tiny_tracker(levels=5)(torch.randn(1, 1, 8, 12, 16), torch.zeros(1, 1, 2))


def tiny_head() -> TrackHead:
    torch.manual_seed(0)
    return TrackHead(
        16, (0, 0, 0, 0), widths=(8, 8, 8, 8), features=8, hidden=16, depth=1, heads=2, virtual=4,
        levels=2, radius=1, iterations=2,
    ).eval()  # fmt: skip


def test_tracks_are_in_pixels_of_the_image_and_autocast_leaves_them_whole():
    head, tokens = tiny_head(), {0: torch.randn(1, 2, 5 + 6, 16)}
    queries = torch.tensor([[[0.0, 0], [40.3, 27.7]]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tracks, _, _ = head(tokens, (28, 42), 5, queries)
    assert tracks.shape == (2, 1, 2, 2, 2) and tracks.dtype == torch.float32
    torch.testing.assert_close(tracks[-1, :, 0], queries)


@pytest.mark.parametrize("shape", [(2, 4, 2), (1, 4, 3), (4, 2)])
def test_queries_of_another_shape_are_refused(shape):
    tokens = {0: torch.randn(1, 2, 5 + 6, 16)}
    with pytest.raises(ValueError, match="B, N, 2"):
        tiny_head()(tokens, (28, 42), 5, torch.zeros(shape))


def test_gradients_reach_the_features():
    head, tokens = tiny_head(), torch.randn(1, 2, 5 + 6, 16, requires_grad=True)
    tracks, visible, _ = head({0: tokens}, (28, 42), 5, torch.rand(1, 3, 2) * 20)
    (tracks[-1].sum() + visible.sum()).backward()
    assert torch.isfinite(tokens.grad).all() and tokens.grad.abs().max() > 0
