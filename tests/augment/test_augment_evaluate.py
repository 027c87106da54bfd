"""Scoring: right figures for right ways, one run per recipe and pose, no sight of the truth."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from wristaugment.augment import assess
from wristaugment.augment.baselines import MEAN_PICTURE, parse_ways
from wristaugment.augment.evaluate import Scorer, stream_pose_error
from wristaugment.augment.nearest import Neighbours
from wristaugment.augment.pages import evaluation_row, evaluation_tables, run_row
from wristaugment.augment.report import Gauge
from wristaugment.augment.scores import COPY, METRICS, NO_WEIGHTS, format_table
from wristaugment.augment.seeds import record_seed
from wristaugment.readers.episode import Episode, Record, View, WristStream
from wristaugment.readers.errors import SourceError

SIZE = (20, 28)
ANCHOR = np.eye(4)
ANCHOR[:3, 3] = [0.0, 0.0, 1.0]  # the hand camera stands a metre from the anchor


def make_episode(index: int, steps: int = 4, *, calibrated: bool = True) -> Episode:
    """An episode whose wrist view is twice the generated size."""
    rng = np.random.default_rng(index)
    frames = lambda h, w: rng.integers(30, 220, (steps, h, w, 3), dtype=np.uint8)
    known = {"K": np.eye(3), "pose": ANCHOR} if calibrated else {}
    return Episode(
        Record("val", 0, index),
        [View("observation/left", frames(48, 64), **known)],
        language="put the <b>cup</b> down",
        eef_pose=np.tile(np.eye(4), (steps, 1, 1)) if calibrated else None,
        wrist_mount=np.eye(4) if calibrated else None,
        wrist=View("observation/wrist", frames(2 * SIZE[0], 2 * SIZE[1])),
    )


class FakeAugmenter:
    """Gives the truth plus a bias (`auto`), or a worse one with a shifted pose (`head`)."""

    def __init__(self, truths):
        self.truths, self.calls, self.depth = truths, [], None
        self.fingerprint = {"weights.safetensors": "ab" * 32}

    def __call__(self, episode, *, seed, pose="auto", geometry="predicted"):
        assert episode.wrist is None, "the truth must not be shown to what is scored"
        self.calls.append((episode.record, seed, pose))
        truth = self.truths[episode.record].astype(int)
        bias = {"auto": 4, "measured": 4, "head": 16}[pose]
        condition = (truth + 2 * bias).clip(0, 255).astype(np.uint8)
        holes = np.zeros(condition.shape[:3], bool)
        holes[:, :, ::2] = True
        condition[holes] = 0
        poses = np.tile(np.eye(4), (episode.length, 1, 1))
        if pose == "head":
            poses[:, 0, 3] = 0.02
        valid = np.ones(episode.length, bool)
        valid[-1] = False
        return WristStream(
            frames=(truth + bias).astype(np.uint8),
            valid=valid,
            coverage=np.full(episode.length, 0.5, np.float32),
            condition=condition,
            holes=holes,
            pose=poses,
            anchor_pose=ANCHOR,
            depth=self.depth,
            notes={"pose": f"{pose} was asked for"},
            seconds={"project": 0.25, "generate": 0.0},
        )


@pytest.fixture
def bench(tmp_path):
    """(episodes, augmenter, a function that makes a Scorer of ways)."""
    episodes = [make_episode(i) for i in range(3)]
    truths = {e.record: assess.resize_frames(e.wrist.frames, SIZE) for e in episodes}
    augmenter = FakeAugmenter(truths)
    Image.new("RGB", (28, 20), (125, 125, 125)).save(tmp_path / MEAN_PICTURE)

    def scorer(*names, **options):
        ways = parse_ways(names) if names else []
        return Scorer(
            ways, lambda name: augmenter, lambda name: SIZE, lambda name: tmp_path, **options
        )

    return episodes, augmenter, scorer


def test_figures_are_those_of_the_metrics(bench):
    episodes, _, make = bench
    scorer = make("nano", "nano:head", "projection", "mean", "anchor", seed=5)
    for episode in episodes:
        scorer(episode)
    summary = scorer.summary()
    assert list(summary) == ["nano", "nano:head", "projection", "mean", "anchor"]
    expected = 20 * np.log10(255 / 4)  # every pixel off by 4
    assert summary["nano"]["psnr"]["mean"] == pytest.approx(expected)
    assert summary["nano:head"]["psnr"]["mean"] == pytest.approx(20 * np.log10(255 / 16))
    truth = assess.resize_frames(episodes[0].wrist.frames, SIZE)
    grey = np.full_like(truth, 125)
    first = scorer.scored[0][1]["mean"]
    np.testing.assert_allclose(first.ssim, assess.ssim(grey, truth))
    small = assess.resize_frames(episodes[0].anchors[0].frames, SIZE)
    np.testing.assert_allclose(scorer.scored[0][1]["anchor"].psnr, assess.psnr(small, truth))


def test_seams_are_told_of_what_was_made_in_clips_and_of_nothing_else(bench):
    episodes, augmenter, make = bench
    noise = np.random.default_rng(0).integers(0, 9, (4, *SIZE, 3))
    joins = np.array([False, True, False])

    def in_clips(episode, **options):
        stream = augmenter(episode, **options)
        return replace(stream, frames=(stream.frames + noise).astype(np.uint8), joins=joins)

    scorer = make("nano", "projection", "mean")
    clips = {"fingerprint": {}, "__call__": staticmethod(in_clips)}
    scorer.augmenter = lambda name: type("Clips", (), clips)()
    score = scorer(episodes[0]).scores
    truth = assess.resize_frames(episodes[0].wrist.frames, SIZE)
    made = (truth.astype(int) + 4 + noise).astype(np.uint8)
    assert score["nano"].number("seam") == pytest.approx(assess.seam(made, truth, joins))
    assert np.isnan(score["projection"].number("seam")) and np.isnan(score["mean"].number("seam"))


def test_the_first_ways_lead_is_paired_by_episode(bench):
    episodes, _, make = bench
    scorer = make("nano", "mean")
    for episode in episodes:
        scorer(episode)
    summary = scorer.summary()
    ahead = summary["mean"]["psnr_ahead"]
    gaps = [s["nano"].psnr.mean() - s["mean"].psnr.mean() for _, s in scorer.scored]
    assert ahead["mean"] == pytest.approx(np.mean(gaps))
    assert min(gaps) - 1e-9 <= ahead["low"] <= ahead["mean"] <= ahead["high"] <= max(gaps) + 1e-9
    assert "psnr_ahead" not in summary["nano"]


def test_one_run_per_recipe_and_pose_with_the_records_seed(bench):
    episodes, augmenter, make = bench
    scorer = make("projection", "nano", "projection-holes", "nano:head", "projection:head", seed=9)
    scorer(episodes[1])
    record = episodes[1].record
    seed = record_seed(9, record)
    assert augmenter.calls == [(record, seed, "auto"), (record, seed, "head")]


def test_from_rgb_alone_a_recipe_sees_no_camera_no_pose_and_no_depth(bench):
    episodes, augmenter, make = bench
    seen = []
    run = lambda episode, **options: seen.append(episode) or augmenter(episode, **options)
    scorer = make("nano", "nano+rgb")
    scorer.augmenter = lambda runs: run
    run.fingerprint = {}
    scorer(episodes[1])
    told, blind = seen
    assert told.eef_pose is not None and told.wrist_mount is not None
    assert any(view.K is not None for view in told.anchors)
    assert blind.eef_pose is blind.wrist_mount is blind.wrist_K is blind.wrist is None
    assert all(view.K is view.pose is view.depth is None for view in blind.anchors)
    assert [v.key for v in blind.anchors] == [v.key for v in told.anchors]
    assert blind.record == told.record and blind.language == told.language


def test_pose_error_is_reported_where_it_can_be_known(bench):
    episodes, augmenter, make = bench
    scorer = make("nano", "nano:head", "mean")
    scorer(episodes[0])
    summary = scorer.summary()
    assert summary["nano"]["pose_rotation_deg"]["mean"] == pytest.approx(0, abs=1e-9)
    assert summary["nano"]["pose_scale"]["mean"] == pytest.approx(1)
    assert summary["nano:head"]["pose_translation_cm"]["mean"] == pytest.approx(2.0, abs=1e-3)
    assert summary["mean"]["pose_rotation_deg"] is None
    # Without a calibrated anchor only the path itself could tell, and this one stands still.
    bare = make_episode(7, calibrated=True)
    bare.anchors[0].pose = None
    augmenter.truths[bare.record] = assess.resize_frames(bare.wrist.frames, SIZE)
    other = make("nano")
    other(bare)
    assert other.summary()["nano"]["pose_translation_cm"] is None


def test_the_pose_is_compared_relative_to_the_anchor_in_whatever_world(bench):
    episode = bench[0][0]
    path = np.tile(np.eye(4), (4, 1, 1))
    path[:, 0, 3] = [0.0, 0.1, 0.2, 0.3]
    episode.eef_pose = path
    measured = episode.measured_wrist_pose()
    stream = bench[1](replace(episode, wrist=None), seed=0)
    world = np.eye(4)
    world[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    world[:3, 3] = [3.0, -2.0, 5.0]
    stream.pose, stream.anchor_pose = measured @ world, ANCHOR @ world
    for known in (ANCHOR, None):  # known: exactly so; unknown: found from the path
        episode.anchors[0].pose = known
        turn, shift, scale = stream_pose_error(episode, stream)
        np.testing.assert_allclose(turn, 0, atol=1e-6)
        np.testing.assert_allclose(shift, 0, atol=1e-6)
        assert scale == pytest.approx(1)
    stream.anchor_pose = None
    assert len(stream_pose_error(episode, stream)[0]) == 0


def test_depth_error_is_of_the_depth_that_was_used(bench):
    episodes, augmenter, make = bench
    known = np.full((4, 48, 64), 2.0, np.float32)
    known[:, :, 32:] = 0  # unknown
    episodes[0].anchors[0].depth = known
    augmenter.depth = np.full((4, 1, 24, 32), 1.0, np.float32)
    augmenter.depth[:, :, :6, :16] = 1.5  # a quarter of what is known is half as far again
    scorer = make("nano", "mean")
    scorer(episodes[0])
    assert scorer.summary()["nano"]["depth_error"]["mean"] == pytest.approx(0.125)
    assert scorer.summary()["mean"]["depth_error"] is None


def test_the_nearest_training_frame_is_never_the_episodes_own(bench):
    episodes, _, make = bench

    def neighbours(size):
        found = Neighbours(size)
        for episode in episodes:
            found.add(episode)
        return found

    scorer = make("nearest", neighbours=neighbours)
    scorer.load()
    # The anchors of episode 1 become nearly those of episode 0, backwards.
    first = episodes[0].anchors[0].frames
    episodes[1].anchors[0].frames = (first[::-1].astype(int) + 1).astype(np.uint8)
    made = scorer(episodes[1]).views["nearest"]
    truth = assess.resize_frames(episodes[0].wrist.frames, SIZE)
    assert (made == truth[::-1]).all()
    # Its own frames match exactly, and are not taken.
    own = scorer(episodes[0]).views["nearest"]
    assert not any((frame == other).all() for frame, other in zip(own, truth, strict=True))
    lone = Neighbours(SIZE)
    lone.add(episodes[0])
    with pytest.raises(SourceError, match="--train-split"):
        lone.find(episodes[0])


def test_what_has_no_weights_says_so_and_what_has_is_measured(bench):
    episodes, _, make = bench
    scorer = make("nano", "mean", lpips=lambda made, truth: np.full(len(made), 0.25))
    for episode in episodes:
        scorer(episode)
    summary = scorer.summary({"fvd": "no weights (not given)"})
    assert summary["nano"]["fvd"] == NO_WEIGHTS and summary["mean"]["fvd"] == NO_WEIGHTS
    assert summary["nano"]["lpips"] == {"mean": 0.25, "low": 0.25, "high": 0.25}
    assert set(METRICS) <= set(summary["nano"])
    for figures in summary.values():
        for value in figures.values():
            assert value in (None, NO_WEIGHTS) or set(value) == {"mean", "low", "high"}
    assert NO_WEIGHTS in format_table(summary)


def test_fvd_is_over_the_clips_of_all_episodes(bench):
    _, augmenter, make = bench
    episodes = [make_episode(i, steps=12) for i in range(4)]
    augmenter.truths = {e.record: assess.resize_frames(e.wrist.frames, SIZE) for e in episodes}
    seen = []

    def features(clips):
        seen.append(clips.shape)
        return clips.reshape(len(clips), -1)[:, :5].astype(float)

    scorer = make("nano", "nano:head", features=features)
    for episode in episodes:
        scorer(episode)
    assert set(seen) == {(1, 12, *SIZE, 3)} and len(seen) == 12  # the truth once an episode
    figures = [scorer.summary()[name]["fvd"] for name in ("nano", "nano:head")]
    # Every feature is off by the same bias, so only the means differ.
    assert [f["mean"] for f in figures] == pytest.approx([5 * 4**2, 5 * 16**2])
    assert all(f["low"] <= f["mean"] <= f["high"] for f in figures)
    short = make("nano", features=features)
    augmenter.truths[bench[0][0].record] = assess.resize_frames(bench[0][0].wrist.frames, SIZE)
    short(bench[0][0])
    assert short.summary()["nano"]["fvd"] is None  # four frames are no clip


def test_frames_that_could_not_be_made_are_counted(bench):
    episodes, _, make = bench
    scorer = make("nano", "mean")
    for episode in episodes:
        scorer(episode)
    assert sum(scores["nano"].invalid for _, scores in scorer.scored) == 3
    assert scorer.summary()["nano"]["invalid"]["mean"] == 0.25
    assert scorer.summary()["mean"]["invalid"] is None


def test_a_copy_is_scored_at_its_own_size(bench):
    episodes, augmenter, make = bench
    scorer = make(with_copy=True)
    frames = assess.resize_frames(episodes[0].wrist.frames, (14, 20)) + np.uint8(2)
    copied = WristStream(frames, np.array([True, False, True, True]), np.full(4, np.nan))
    result = scorer(episodes[0], copied)
    assert scorer.names == [COPY] and not augmenter.calls
    assert scorer.summary()[COPY]["psnr"]["mean"] == pytest.approx(20 * np.log10(255 / 2))
    assert scorer.summary()[COPY]["seconds_per_frame"] is None
    assert scorer.summary()[COPY]["coverage"] is None
    assert scorer.summary()[COPY]["invalid"]["mean"] == 0.25
    assert result.truth.shape[1:3] == (14, 20)


def test_a_copy_of_another_length_is_refused(bench):
    episodes, _, make = bench
    copied = WristStream(np.zeros((3, 20, 28, 3), np.uint8), np.ones(3, bool), np.ones(3))
    with pytest.raises(SourceError, match="3 frames were made for 4 steps"):
        make(with_copy=True)(episodes[0], copied)


def test_missing_weights_stop_before_the_first_episode(bench, tmp_path):
    _, _, make = bench
    scorer = make("mean")
    (tmp_path / MEAN_PICTURE).unlink()
    with pytest.raises(SourceError, match="mean wrist picture"):
        scorer.load()
    assert make("nano").load() == {"nano": {"weights.safetensors": "ab" * 32}}


def test_an_episode_that_fails_leaves_no_trace_in_the_figures(bench):
    episodes, _, make = bench
    scorer = make("mean", "nano")
    episodes[0].wrist = None
    with pytest.raises(SourceError, match="no recorded wrist view"):
        scorer(episodes[0])
    assert scorer.scored == []


def test_the_table_has_a_line_a_way(bench):
    episodes, _, make = bench
    scorer = make("nano:head", "mean")
    scorer(episodes[0])
    lines = format_table(scorer.summary(), width=1000).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("way") and lines[1].startswith("nano:head")
    assert "24.05 [24.05, 24.05]" in lines[1] and "2.00 [2.00, 2.00]" in lines[1]
    assert "-" in lines[2].split()
    narrow = format_table(scorer.summary(), width=60)
    assert max(map(len, narrow.splitlines())) <= 60
    again = ["way", "nano:head", "mean"] * narrow.count("\n\n")  # further blocks name them anew
    assert sorted(narrow.split()) == sorted(" ".join(lines).split() + again)


def test_the_row_shows_anchors_conditions_ways_and_truth(bench):
    episodes, _, make = bench
    scorer = make("nano", "nano:head", "mean")
    row = evaluation_row(scorer(episodes[0]), scorer.ways)
    assert [(p.caption, p.kind) for p in row.players] == [
        ("left", "recorded"),
        ("condition map (nano, auto pose)", "geometry"),
        ("condition map (nano, head pose)", "geometry"),
        ("nano", "synthetic"),
        ("nano:head", "synthetic"),
        ("true wrist view", "recorded"),
        ("mean", "baseline"),
    ]
    assert row.language == episodes[0].language
    assert any("head was asked for" in fact for fact in row.details)
    assert any("1 of 4 frames could not be made well" in fact for fact in row.details)


def test_the_table_marks_the_best(bench):
    episodes, _, make = bench
    scorer = make("mean", "nano")
    scorer(episodes[0])
    tables = evaluation_tables(scorer.summary({"lpips": "no weights"}), 1, 4)
    table = tables[0]
    best = {row[0]: row[1].best for row in table.rows if isinstance(row[1], Gauge)}
    assert best == {"mean": False, "nano": True}
    assert all(len(row) == len(t.columns) <= 6 for t in tables for row in t.rows)
    assert all([row[0] for row in t.rows] == ["mean", "nano"] for t in tables)
    columns = [column for t in tables for column in t.columns[1:]]
    assert columns[:4] == ["PSNR dB", "PSNR of mean less this", "SSIM", "LPIPS"]
    assert [row[4] for row in table.rows] == ["no weights"] * 2
    assert "depth error" not in columns and "coverage" in columns
    # Less flicker is better, and of coverage nothing is.
    by_name = {t.columns[i]: [r[i] for r in t.rows] for t in tables for i in range(len(t.columns))}
    flickers = [(cell.mean, cell.best) for cell in by_name["flicker"]]
    assert min(flickers)[1] and not max(flickers)[1]
    assert not by_name["coverage"][1].best


def test_a_row_without_truth(bench):
    episodes, augmenter, _ = bench
    episodes[0].wrist = None
    stream = augmenter(episodes[0], seed=1)
    row = run_row(episodes[0], stream, "nano")
    assert [p.kind for p in row.players] == ["recorded", "geometry", "synthetic"]
    assert all(p.psnr is None for p in row.players)
