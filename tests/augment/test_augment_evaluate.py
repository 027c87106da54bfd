"""Scoring: right figures for right ways, one run per recipe and pose, no sight of the truth."""

import numpy as np
import pytest
from PIL import Image
from wristaugment.augment import assess
from wristaugment.augment.baselines import MEAN_PICTURE, parse_ways
from wristaugment.augment.evaluate import COPY, Scorer, format_table
from wristaugment.augment.pages import evaluation_row, evaluation_table, run_row
from wristaugment.augment.report import Gauge
from wristaugment.augment.seeds import record_seed
from wristaugment.readers.episode import Episode, Record, View, WristStream
from wristaugment.readers.errors import SourceError

SIZE = (20, 28)


def make_episode(index: int, steps: int = 4, *, calibrated: bool = True) -> Episode:
    """An episode whose wrist view is twice the generated size."""
    rng = np.random.default_rng(index)
    frames = lambda h, w: rng.integers(30, 220, (steps, h, w, 3), dtype=np.uint8)
    known = {"K": np.eye(3), "pose": np.eye(4)} if calibrated else {}
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
        self.truths, self.calls = truths, []
        self.fingerprint = {"weights.safetensors": "ab" * 32}

    def __call__(self, episode, *, seed, pose="auto", progress=None):
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


def test_pose_error_is_reported_where_it_can_be_known(bench):
    episodes, augmenter, make = bench
    scorer = make("nano", "nano:head", "mean")
    scorer(episodes[0])
    summary = scorer.summary()
    assert summary["nano"]["pose_rotation_deg"] == pytest.approx(0, abs=1e-9)
    assert summary["nano:head"]["pose_translation_cm"] == pytest.approx(2.0)
    assert summary["mean"]["pose_rotation_deg"] is None
    # Without calibrated anchors the stream's world is another one.
    bare = make_episode(7, calibrated=True)
    bare.anchors[0].pose = None
    augmenter.truths[bare.record] = assess.resize_frames(bare.wrist.frames, SIZE)
    other = make("nano")
    other(bare)
    assert other.summary()["nano"]["pose_translation_cm"] is None


def test_frames_that_could_not_be_made_are_counted(bench):
    episodes, _, make = bench
    scorer = make("nano", "mean")
    for episode in episodes:
        scorer(episode)
    assert scorer.summary()["nano"]["invalid_frames"] == 3
    assert scorer.summary()["mean"]["invalid_frames"] == 0


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
    assert scorer.summary()[COPY]["invalid_frames"] == 1
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
    lines = format_table(scorer.summary()).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("way") and lines[1].startswith("nano:head")
    assert "24.05 [24.05, 24.05]" in lines[1] and "2.0 cm" in lines[1]
    assert lines[2].rstrip().endswith("-")


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
    table = evaluation_table(scorer.summary(), 1, 4)
    best = {row[0]: row[1].best for row in table.rows if isinstance(row[1], Gauge)}
    assert best == {"mean": False, "nano": True}
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_row_without_truth(bench):
    episodes, augmenter, _ = bench
    episodes[0].wrist = None
    stream = augmenter(episodes[0], seed=1)
    row = run_row(episodes[0], stream, "nano")
    assert [p.kind for p in row.players] == ["recorded", "geometry", "synthetic"]
    assert all(p.psnr is None for p in row.players)
