"""The expected SSIM of frames: the regression, the domain, the file, the threshold, the ranks."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from wristaugment.augment.confidence import (
    FEATURES,
    FLAGS,
    PICTURE,
    PLAIN,
    Confidence,
    apply_threshold,
    best_half,
    fit_domain,
    fit_regression,
    load_confidence,
    mark_unmade,
)
from wristaugment.augment.scores import Score, summarise
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import SourceError

WEIGHTS = {"generation.safetensors": "ab" * 32}


def rows(count, seed=0):
    """(features, SSIM) of frames whose SSIM follows from two features, and noise beside."""
    random = np.random.default_rng(seed)
    features = {name: random.normal(size=count) for name in PLAIN}
    features["from_head"] = (random.random(count) < 0.5).astype(float)
    features["uncalibrated"] = features["from_head"] * (random.random(count) < 0.5)
    ssim = 0.6 + 0.05 * features["flat_map"] - 0.15 * features["from_head"]
    ssim += 0.03 * features["from_head"] * features["near"]
    return features, ssim + random.normal(scale=0.01, size=count)


def pictures(count, seed=0, shift=0.0):
    random = np.random.default_rng(seed)
    base = random.normal(size=(count, 1, 2, len(PICTURE)))
    return [e + 0.1 * random.normal(size=(4, 2, len(PICTURE))) + shift for e in base]


def fitted():
    features, ssim = rows(4000)
    return Confidence(
        "nano", WEIGHTS, fit_regression(features, ssim, np.ones(4000)), fit_domain(pictures(40)),
        0.35, 0.5, {"fitted_on": "noise"},
    )  # fmt: skip


def test_the_regression_finds_what_the_ssim_follows_from():
    found = fitted().regression
    features, ssim = rows(300, seed=1)
    assert np.abs(found(features) - ssim).mean() < 0.015
    assert spearmanr(found(features), ssim).statistic > 0.97
    assert found.weight["flat_map"] == pytest.approx(0.05, abs=0.01)
    assert found.head_weight["near"] == pytest.approx(0.03, abs=0.01)
    assert found.flags["from_head"] == pytest.approx(-0.15, abs=0.02)
    assert abs(found.weight["both"]) < 0.01


def test_what_cannot_be_told_says_nothing_and_outliers_little():
    found = fitted().regression
    features, _ = rows(1)
    features["from_head"] = features["uncalibrated"] = np.zeros(1)
    usual = found({**features, "flat_map": np.array([found.mean["flat_map"]])})
    assert found({**features, "flat_map": np.array([np.nan])}) == pytest.approx(usual)
    far, farther = (found({**features, "flat_map": np.array([v])}) for v in (3.5, 1e9))
    assert far == pytest.approx(farther)


def test_rows_that_count_less_have_less_to_say():
    features, ssim = rows(4000)
    odd = np.arange(4000) % 2 == 1
    wrong = np.where(odd, ssim - 0.2, ssim)
    even = fit_regression(features, wrong, np.ones(4000))
    little = fit_regression(features, wrong, np.where(odd, 0.05, 1.0))
    assert little.offset - even.offset > 0.07


def test_pictures_of_another_kind_are_not_trusted():
    confidence = fitted()
    features, _ = rows(4)
    same, trust = confidence(features, pictures(41, seed=3)[40] * 0.3)
    assert (trust == 1).all() and same.dtype == np.float32
    np.testing.assert_allclose(same, confidence.regression(features), atol=1e-4)
    other, trust = confidence(features, pictures(1, seed=4, shift=6.0)[0])
    assert (trust == 0).all() and (other <= np.float32(confidence.floor)).all()
    edge, far = confidence.domain.edge, confidence.domain.far
    assert confidence.domain.trust(np.array([(edge + far) / 2]))[0] == pytest.approx(0.5)


def test_it_is_read_as_it_was_written(tmp_path):
    confidence = fitted()
    confidence.save(tmp_path / "confidence.json")
    found, about = load_confidence(tmp_path, "nano", WEIGHTS)
    assert found is not None and "noise" in about
    features, _ = rows(50, seed=5)
    statistics = np.repeat(pictures(1, seed=6)[0][:1], 50, axis=0)
    np.testing.assert_allclose(
        found(features, statistics)[0], confidence(features, statistics)[0], atol=2e-4
    )
    first = (tmp_path / "confidence.json").read_bytes()
    found.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == first


def test_a_file_of_other_weights_is_not_used_and_a_damaged_one_refused(tmp_path):
    path = tmp_path / "confidence.json"
    assert load_confidence(tmp_path, "nano", WEIGHTS)[0] is None
    fitted().save(path)
    for recipe, weights, said in (
        ("projection", WEIGHTS, "for recipe nano"),
        ("nano", {"generation.safetensors": "cd" * 32}, "other weights"),
    ):
        found, about = load_confidence(tmp_path, recipe, weights)
        assert found is None and said in about and "train confidence" in about
    tree = json.loads(path.read_text())
    del tree["regression"]["weight"]["near"]
    for text in (json.dumps(tree), "{", "[]"):
        path.write_text(text)
        with pytest.raises(SourceError, match=r"confidence\.json.*cannot be read"):
            load_confidence(tmp_path, "nano", WEIGHTS)


def test_the_packaged_one_fits_the_packaged_weights():
    from wristaugment.augment.recipe import WEIGHTS as FOLDER
    from wristaugment.augment.weights import fingerprint

    found, _ = load_confidence(FOLDER / "nano", "nano", fingerprint("nano"))
    assert found is not None and found.floor < found.threshold < 1
    assert set(found.about["cases"]) == {"measured", "disturbed", "head", "pictures"}
    assert found.about["cases"]["measured"]["spearman"] > 0.6


def test_frames_below_the_threshold_are_not_valid_and_keep_their_pixels():
    frames = np.full((4, 8, 8, 3), 90, np.uint8)
    valid = np.array([True, True, False, True])
    told = np.array([0.6, 0.4, np.nan, 0.5], np.float32)
    stream = WristStream(frames.copy(), valid, np.ones(4, np.float32), confidence=told)
    for least, wanted in ((None, valid), (0.5, [True, False, False, True])):
        changed = dataclasses.replace(stream)
        apply_threshold(changed, least)
        assert changed.valid.tolist() == list(wanted) and (changed.frames == 90).all()
    unknown = dataclasses.replace(stream, confidence=None)
    apply_threshold(unknown, 0.9)
    assert unknown.valid.tolist() == valid.tolist()


def test_nothing_is_expected_of_a_frame_that_could_not_be_made():
    told = np.array([0.6, 0.0, 0.3], np.float32)
    marked = mark_unmade(told, np.array([True, True, False]))
    assert marked.dtype == np.float32 and marked[0] == told[0] and 0 < marked[1] < 0.001
    assert marked[2] == 0


def test_the_best_half_is_of_the_confidence_not_of_the_truth():
    psnr = np.array([10.0, 30.0, 20.0, 20.0])
    assert best_half(np.array([1, 4, 3, 2]), psnr) == pytest.approx(5.0)
    assert best_half(np.array([4, 1, 3, 2]), psnr) == pytest.approx(-5.0)
    assert np.isnan(best_half(np.ones(1), psnr[:1]))


def test_the_summary_ranks_over_all_frames_and_leaves_out_what_was_not_made():
    random = np.random.default_rng(0)
    scored = []
    for episode in range(8):
        ssim = 0.3 + 0.05 * episode + 0.01 * random.random(6)
        told = ssim + 0.001 * random.random(6)
        told[0], ssim[0] = np.nan, 0.9  # not made: nothing was expected of it
        known = Score(psnr=20 * ssim, ssim=ssim, confidence=told)
        scored.append({"nano": known, "mean": Score(psnr=ssim, ssim=ssim)})
    table = summarise(["nano", "mean"], scored, seed=0)
    rank = table["nano"]["confidence_rank"]
    assert rank["low"] <= rank["mean"] <= rank["high"] and rank["mean"] > 0.98
    kept = np.concatenate([s["nano"].psnr[1:] for s in scored])
    assert table["nano"]["confidence_best_half"]["mean"] == pytest.approx(
        np.sort(kept)[20:].mean() - kept.mean(), abs=0.02
    )
    assert table["mean"]["confidence_rank"] is None
    said = scored[0]["nano"].as_dict()
    assert said["confidence_by_frame"][0] is None and len(said["confidence_by_frame"]) == 6


def test_every_feature_is_named_once():
    assert set(PLAIN) | set(FLAGS) == set(FEATURES) and len(set(PICTURE)) == len(PICTURE) == 17
