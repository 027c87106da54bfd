"""`wristaugment evaluate` on files: figures checked against other libraries, refusals, left-outs.

The small datasets have no hand camera, so one side view plays the recorded wrist view.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_weights import TinyI3D, alexnet
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tensorflow_datasets.proto import tf_example_pb2
from wristaugment.augment.baselines import MEAN_PICTURE
from wristaugment.augment.recipe import get_recipe, weights_folder
from wristaugment.jobs import cli
from wristaugment.models.perceptual import open_video_features
from wristaugment.readers.tfrecord import read_frames

LEFT, RIGHT = "exterior_image_1_left", "exterior_image_2_left"
SIZE = (24, 32)  # of the small datasets' pictures


def arguments(root, *more) -> list[str]:
    given = ["--dataset", "droid", "--data-dir", root, "--against", RIGHT, "--anchor-keys", LEFT]
    return ["evaluate", *map(str, given), *map(str, more)]


def evaluate(root, tmp_path, *more) -> tuple[int, dict]:
    """(exit code, what --json holds)."""
    path = tmp_path / "figures.json"
    code = cli.main(arguments(root, "--json", path, *more))
    return code, json.loads(path.read_text())


def refused(capsys, *args) -> str:
    """The one line that a refusal gives."""
    assert cli.main([str(arg) for arg in args]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1 and said[0].startswith("wristaugment: error: ")
    return said[0]


def pictures(shard, key) -> list[np.ndarray]:
    """Per record of a shard file, [T, H, W, 3] of a key, by protobuf and Pillow alone."""
    streams = []
    for frame in read_frames(shard):
        example = tf_example_pb2.Example.FromString(frame.payload)
        files = example.features.feature[f"steps/observation/{key}"].bytes_list.value
        streams.append(np.stack([np.asarray(Image.open(io.BytesIO(f))) for f in files]))
    return streams


def resized(frames, size):
    grows = any(new > old for new, old in zip(size, frames[0].shape, strict=False))
    how = Image.Resampling.BICUBIC if grows else Image.Resampling.BOX
    return [np.asarray(Image.fromarray(f).resize(size[::-1], how)) for f in frames]


@pytest.fixture(scope="session")
def augmented(small, lab, tmp_path_factory):
    """A copy of `small` with grey frames in the size of its pictures."""
    out = tmp_path_factory.mktemp("augmented") / "out"
    options = ["--anchor-keys", LEFT, "--wrist-size", f"{SIZE[0]}x{SIZE[1]}"]
    done = lab.without_ray(small.args(out, *options))
    assert done.returncode == 0, done.stderr
    return out


def test_a_copy_gets_the_figures_that_scikit_image_gives(small, augmented, tmp_path):
    code, report = evaluate(small.root, tmp_path, "--copy", augmented)
    assert code == 0
    assert [e["record"] for e in report["episodes"]] == [
        f"train/{shard}/{index}" for shard in range(4) for index in range(2)
    ]
    (folder,) = augmented.glob("droid/*")
    copies = sorted(folder.glob("*.tfrecord-*"))
    figures = {}
    for shard in range(4):
        made, truth = pictures(copies[shard], "wrist_rgb"), pictures(small.shard(shard), RIGHT)
        for index in range(2):
            pairs = list(zip(truth[index], made[index], strict=True))
            psnr = np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs])
            options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
            ssim = np.mean(
                [
                    structural_similarity(a, b, data_range=255, channel_axis=-1, **options)
                    for a, b in pairs
                ]
            )
            figures[f"train/{shard}/{index}"] = (psnr, ssim)
    for entry in report["episodes"]:
        psnr, ssim = figures[entry["record"]]
        assert entry["recipes"]["copy"]["psnr"] == pytest.approx(psnr)
        assert entry["recipes"]["copy"]["ssim"] == pytest.approx(ssim)
    means = report["recipes"]["copy"]
    assert means["psnr"]["mean"] == pytest.approx(np.mean([f[0] for f in figures.values()]))
    assert means["psnr"]["low"] <= means["psnr"]["mean"] <= means["psnr"]["high"]
    assert means["pose_rotation_deg"] is None and report["invalid_frames"] == {"copy": 0}
    assert means["lpips"] == means["fvd"] == "no weights"
    assert "alexnet" in report["no_weights"]["lpips"] and "i3d" in report["no_weights"]["fvd"]


def test_ways_are_run_and_a_page_is_written(small, lab, tmp_path, capsys):
    page = tmp_path / "page.html"
    code, report = evaluate(
        small.root, tmp_path, "--recipes", "constant,anchor", "--episodes", 3, "--page", page
    )
    assert code == 0 and list(report["recipes"]) == ["constant", "anchor"]
    assert len(report["episodes"]) == 3 and report["frames"] == 3 * lab.steps
    out = capsys.readouterr().out
    assert "3 episodes" in out and str(page) in out
    lines = out[out.index("3 episodes") :].splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["way", "constant", "anchor"]
    text = page.read_text()
    assert text.count('class="episode') == 3 and "train/1/0" in text
    assert "Synthetic frames: machine-generated by recipe constant" in text
    assert str(tmp_path) not in text


def test_same_seed_same_figures(small, tmp_path):
    options = ("--recipes", "constant", "anchor", "--episodes", 4)
    reports = [evaluate(small.root, tmp_path, *options)[1] for _ in range(2)]
    reports.append(evaluate(small.root, tmp_path, *options, "--seed", 5)[1])
    for report in reports:
        for row in report["recipes"].values():
            row.pop("seconds_per_frame")
    assert reports[0] == reports[1]
    # The grey of the recipe follows the seed of each record; the anchor's figures do not.
    psnr = [[e["recipes"] for e in report["episodes"]] for report in reports]
    assert psnr[0][0]["constant"] != psnr[2][0]["constant"]
    assert psnr[0][0]["anchor"] == psnr[2][0]["anchor"]


def test_json_to_stdout_is_nothing_but_json(small, capsys):
    code = cli.main(arguments(small.root, "--recipes", "anchor", "--episodes", "1", "--json", "-"))
    captured = capsys.readouterr()
    assert code == 0
    assert json.loads(captured.out)["recipes"]["anchor"]["psnr"]["mean"] > 0
    assert "PSNR" in captured.err


def test_a_copy_and_a_baseline_are_compared_at_the_copys_size(small, augmented, tmp_path):
    _, report = evaluate(
        small.root, tmp_path, "--copy", augmented, "--recipes", "anchor", "--episodes", 1
    )
    truth, side = (pictures(small.shard(0), key)[0] for key in (RIGHT, LEFT))
    expected = np.mean(
        [
            peak_signal_noise_ratio(a, b, data_range=255)
            for a, b in zip(resized(truth, SIZE), resized(side, SIZE), strict=True)
        ]
    )
    assert report["episodes"][0]["recipes"]["anchor"]["psnr"] == pytest.approx(expected)
    assert list(report["recipes"]) == ["copy", "anchor"]


def test_a_damaged_record_is_left_out_and_the_copy_still_pairs_up(lab, tmp_path):
    source = lab.make_source(tmp_path / "source", shards=1, episodes=3)
    whole = tmp_path / "whole"
    damaged = source.shard(0).read_bytes()
    place = len(damaged) // 2  # in the second of three records
    source.shard(0).write_bytes(
        damaged[:place] + bytes([damaged[place] ^ 0xFF]) + damaged[place + 1 :]
    )
    done = lab.without_ray(source.args(whole, "--anchor-keys", LEFT))
    assert done.returncode == 3, done.stderr
    code, report = evaluate(source.root, tmp_path, "--copy", whole)
    assert code == 3
    assert [e["record"] for e in report["episodes"]] == ["train/0/0", "train/0/2"]
    (left,) = report["left_out"]
    assert left["record"] == "train/0/1" and "crc" in left["reason"].lower()


def test_episodes_that_the_copy_lacks_are_left_out(small, lab, tmp_path):
    out = tmp_path / "out"
    done = lab.without_ray(small.args(out, "--anchor-keys", LEFT, "--episodes", "3"))
    assert done.returncode == 0, done.stderr
    code, report = evaluate(small.root, tmp_path, "--copy", out)
    assert code == 3 and len(report["episodes"]) == 3 and len(report["left_out"]) == 5
    assert "does not hold this episode" in report["left_out"][0]["reason"]
    code, report = evaluate(small.root, tmp_path, "--copy", out, "--episodes", 3)
    assert code == 0 and len(report["episodes"]) == 3


def test_a_copy_of_another_dataset_is_refused(lab, augmented, tmp_path, capsys):
    other = lab.make_source(tmp_path / "other", shards=4, episodes=2, steps=5)
    said = refused(capsys, *arguments(other.root, "--copy", augmented))
    assert "another episode" in said and "--data-dir" in said


def test_a_copy_without_the_key_is_refused_with_the_keys_it_has(small, augmented, capsys):
    said = refused(
        capsys, *arguments(small.root, "--copy", augmented, "--wrist-key", "wrist_image")
    )
    assert "no such stream" in said and "observation/wrist_rgb" in said and "--wrist-key" in said


def test_a_key_that_is_not_there_is_refused_with_the_image_keys(small, capsys):
    args = arguments(small.root)
    args[args.index("--against") + 1] = "observation/wrist_image_left"
    said = refused(capsys, *args)
    assert f"observation/{LEFT}, observation/{RIGHT}" in said and "--against" in said
    args[args.index("--against") + 1] = "cartesian_position"
    assert "no such stream" in refused(capsys, *args)


def test_an_anchor_cannot_be_what_is_scored_against(small, capsys):
    args = arguments(small.root)
    args[args.index("--against") + 1] = f"steps/observation/{LEFT}"
    assert "is an anchor view" in refused(capsys, *args)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--recipes", "nanoo"), "unknown way 'nanoo'"),
        (("--recipes", "anchor", "--split", "val"), "there is no split 'val'"),
        (("--recipes", "anchor", "--episodes", "0"), "--episodes"),
        (("--recipes", "mean", "--weights", "/nowhere"), "no mean wrist picture"),
        (("--recipes", "nano", "--device", "cpu", "--weights", "/nowhere"), "/nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_scored(small, capsys, options, said):
    assert said in refused(capsys, *arguments(small.root, *options))


def test_when_nothing_can_be_scored_the_reason_is_given(lab, tmp_path, capsys):
    source = lab.make_source(tmp_path, shards=1, episodes=1)
    source.shard(0).write_bytes(source.shard(0).read_bytes()[:-40])
    json_file = tmp_path / "figures.json"
    said = refused(capsys, *arguments(source.root, "--recipes", "anchor", "--json", json_file))
    assert "not one of 1 episodes could be scored" in said and "train/0/0" in said
    assert not json_file.exists()


SAMPLE = Path(__file__).parents[2] / "sample"
CORPUS = Path(__file__).parents[1] / "fixtures" / "corpus"


def baselines(root, tmp_path, *more) -> tuple[int, dict]:
    """Evaluate the ways that run no network on an embedded dataset, against its hand camera."""
    path = tmp_path / "figures.json"
    given = ["--dataset", "droid", "--data-dir", root, "--against", "wrist_image_left"]
    given += ["--recipes", "anchor,mean,nearest", "--json", path]
    code = cli.main(["evaluate", *map(str, given), *map(str, more)])
    return code, json.loads(path.read_text())


@pytest.fixture
def files(tmp_path):
    """Options that name weights of LPIPS and FVD."""
    torch.save(alexnet(), tmp_path / "alexnet.pth")
    torch.manual_seed(3)
    torch.jit.script(TinyI3D()).save(str(tmp_path / "i3d.pt"))
    return "--lpips-weights", tmp_path / "alexnet.pth", "--fvd-weights", tmp_path / "i3d.pt"


def test_lpips_and_fvd_are_measured_where_weights_are_given(files, tmp_path, capsys):
    names = files
    page = tmp_path / "page.html"
    code, report = baselines(SAMPLE, tmp_path, "--episodes", 4, *names, "--page", page)
    assert code == 0 and report["no_weights"] == {}
    assert set(report["weights"]["lpips"]) == {"alexnet.pth"}
    for row in report["recipes"].values():
        for metric in ("psnr", "ssim", "lpips", "fvd", "flicker", "seconds_per_frame"):
            assert set(row[metric]) == {"mean", "low", "high"}
            assert row[metric]["low"] <= row[metric]["mean"] <= row[metric]["high"]
    lpips = {e["record"]: e["recipes"]["anchor"]["lpips"] for e in report["episodes"]}
    assert len(lpips) == 4 and min(lpips.values()) > 0 and len(set(lpips.values())) == 4
    # The mean picture never changes, so its clips have no spread: the distance of two Gaussians is
    # the squared distance of their means and all of the truth's variance.
    i3d, size = open_video_features(names[3]), report_size(report)
    shard = next((SAMPLE / "droid_101" / "1.0.1").glob("*-00000-of-*"))
    clips = [resized(s[:16], size) for s in pictures(shard, "wrist_image_left")]
    truth = i3d(torch.tensor(np.array(clips))).double()
    still = weights_folder(get_recipe(report["ways"]["mean"]["recipe"]), None) / MEAN_PICTURE
    picture = np.asarray(Image.open(still).convert("RGB").resize(size[::-1], Image.Resampling.BOX))
    made = i3d(torch.tensor(picture).expand(1, 16, -1, -1, -1)).double()[0]
    expected = ((made - truth.mean(0)) ** 2).sum() + truth.var(0).sum()
    assert report["recipes"]["mean"]["fvd"]["mean"] == pytest.approx(float(expected), rel=1e-4)
    out = capsys.readouterr().out
    assert "no weights" not in out and "LPIPS [95%]" in out and "FVD [95%]" in out
    assert "no weights" not in page.read_text()


def report_size(report) -> tuple[int, int]:
    """(height, width) that ways which run no recipe are made at."""
    return get_recipe(report["ways"]["mean"]["recipe"]).wrist_size


def test_files_that_are_not_there_read_no_weights(tmp_path, capsys):
    gone = tmp_path / "gone.pth"
    code, report = baselines(SAMPLE, tmp_path, "--episodes", 2, "--lpips-weights", gone)
    assert code == 0
    assert report["recipes"]["anchor"]["lpips"] == "no weights"
    assert report["recipes"]["anchor"]["fvd"] == "no weights"
    assert "there is no file gone.pth" in report["no_weights"]["lpips"]
    out = capsys.readouterr().out
    assert "lpips: no weights (there is no file gone.pth)" in out and "alexnet-owt" in out


def test_a_file_that_is_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "i3d.pt").write_bytes(b"nothing of the kind")
    given = ["--dataset", "droid", "--data-dir", SAMPLE, "--against", "wrist_image_left"]
    said = refused(
        capsys, "evaluate", *given, "--recipes", "mean", "--fvd-weights", tmp_path / "i3d.pt"
    )
    assert "no TorchScript" in said and "--fvd-weights" in said


def test_nearest_looks_in_the_training_split_or_in_the_other_episodes(tmp_path, capsys):
    _, report = baselines(CORPUS, tmp_path, "--split", "val")
    assert report["nearest"] == ["split train; 24 frames of 3 episodes"]
    by_hand = nearest_by_hand()
    assert report["episodes"][0]["recipes"]["nearest"]["psnr"] == pytest.approx(by_hand)
    _, report = baselines(CORPUS, tmp_path, "--split", "val", "--train-episodes", 2)
    assert report["nearest"] == ["split train, the first 2 of 3 episodes; 16 frames of 2 episodes"]
    _, report = baselines(SAMPLE, tmp_path, "--episodes", 2)
    assert report["nearest"] == [
        "no training split: the other episodes of test; 216 frames of 12 episodes"
    ]
    given = ["--dataset", "droid", "--data-dir", SAMPLE, "--against", "wrist_image_left"]
    said = refused(capsys, "evaluate", *given, "--recipes", "nearest", "--train-split", "train")
    assert "there is no split 'train'" in said and "--train-split" in said


def nearest_by_hand() -> float:
    """PSNR of the nearest training frames of the corpus' only val episode, one frame at a time."""
    folder = CORPUS / "droid_101" / "1.0.1"
    (train,), (val,) = (list(folder.glob(f"*-{split}.tfrecord*")) for split in ("train", "val"))
    size = report_size({"ways": {"mean": {"recipe": "projection"}}})
    thumbs, wrists = {}, {}
    for name, shard in (("train", train), ("val", val)):
        sides = [np.concatenate(pictures(shard, key)) for key in (LEFT, RIGHT)]
        thumbs[name] = np.stack([np.stack(resized(s, (16, 16))) for s in sides], 1).astype(int)
        wrists[name] = resized(np.concatenate(pictures(shard, "wrist_image_left")), size)
    found = []
    for thumb, wrist in zip(thumbs["val"], wrists["val"], strict=True):
        far = [((thumb - other) ** 2).sum() for other in thumbs["train"]]
        made = wrists["train"][int(np.argmin(far))]
        found.append(peak_signal_noise_ratio(wrist, made, data_range=255))
    return float(np.mean(found))
