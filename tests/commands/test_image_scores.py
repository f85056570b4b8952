"""Features that are the same for everybody on the command line: in a run, a comparison, its report, and of images without a run."""

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from inception_peers import random_state
from PIL import Image
from toys import TINY_RUN, Command

from sde_gen import Dataset, load_dataset, metrics
from sde_gen.commands import cost, distance, image_scores
from sde_gen.commands.config import ConfigError, resolve
from sde_gen.commands.image_scores import ImageScores, as_pictures, check_settings, lines_of, reference_of, scores_of
from sde_gen.data import rows_drawn
from sde_gen.data.write import DataDescription
from sde_gen.metrics import features
from sde_gen.metrics.image_features import ImageFeatures

NAME = "inception:weights.pth"


class Small(ImageFeatures):
    """Six features of three sums of pixels each: what is asked here is not how good they are."""

    name = "a small network"
    distance = "FID"
    kernel = "KID"
    width = 6
    seen: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.sha256 = "ab" * 32
        self.weight = torch.nn.Parameter(torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), requires_grad=False)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return torch.nn.functional.adaptive_avg_pool2d(x / 255, 2).flatten(1) @ self.weight

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return 5 * features


class Photographs(Small):
    name = "another small network"
    distance = metrics.ImageNet.distance
    kernel = metrics.ImageNet.kernel

    def logits(self, features: torch.Tensor) -> None:
        return None


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks without weights, and no long fits of the data's own features."""
    monkeypatch.setattr(image_scores, "load_features", lambda text: Photographs() if text == "imagenet" else Small())
    monkeypatch.setitem(features._SETTINGS, "steps", 20)
    Small.seen.clear()


def pictures(folder: Path, count: int, seed: int, size: int = 8, grey: bool = False) -> Path:
    """PNGs of coloured noise over a slope."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for k in range(count):
        shade = rng.integers(0, 200, (1, 1, 3)) + rng.integers(0, 56, (size, size, 3))
        Image.fromarray((shade[:, :, 0] if grey else shade).astype(np.uint8)).save(folder / f"{k:03}.png")
    return folder


def test_a_run_says_fid_beside_its_own_features_and_keeps_what_the_data_alone_decide(sde_gen_command: Command, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    plain = sde_gen_command("run", *TINY_RUN, "--out", str(run))
    assert plain[0] == 0 and not any("FID 0" in line or line.startswith("images") for line in plain[1])
    before = json.loads((run / "metrics.json").read_text())["solvers"]["pc"]
    code, out, err = sde_gen_command("run", *TINY_RUN, "--out", str(run), "--features", NAME)
    assert (code, err) == (0, [])
    after = json.loads((run / "metrics.json").read_text())["solvers"]["pc"]
    assert {name: after[name] for name in ("frechet_distance", "precision", "kernel_distance")} == {
        name: before[name] for name in ("frechet_distance", "precision", "kernel_distance")
    }
    found = after["image_scores"]
    assert (
        found["size"] == 32 and found["held_out_size"] == 32 and found["reference"] == "1500 training images" and found["called"] == "FID"
    )
    assert (
        found["distance"]["std_error"] > 0 and found["kernel"]["std_error"] > 0 and found["held_out"]["value"] < found["distance"]["value"]
    )
    assert after["settings"]["features"] == f"inception:{tmp_path / 'weights.pth'}" and found["sha256"] == "ab" * 32
    k = next(k for k, line in enumerate(out) if line.startswith("images    FID "))
    assert "at 32 images to 1500 training images" in out[k] and "extrapolated" in out[k + 1]
    said = "\n".join(out[k : k + 9])
    for words in ("held-out real data", "KID", "Inception Score", "SHA-256 abababab", "grey images, repeated"):
        assert words in said, words
    page = (run / "report.html").read_text()
    assert "Inception Score" in page and "KID" in page and "grey images" in page and "--features" not in page.split("config.yaml")[0][-300:]
    assert sum(Small.seen) == 8 + 32 + 1500 + 32  # a probe of the cost, samples, training and held-out items: each once


def test_a_comparison_by_fid_needs_no_labels(sde_gen_command: Command, tmp_path: Path) -> None:
    run, photos = tmp_path / "mine", pictures(tmp_path / "photos", 60, 0)
    assert sde_gen_command("run", *TINY_RUN, "--data", str(photos), "--out", str(run))[0] == 0
    asked = ["compare", "--run", str(run), "--solvers", "ancestral,ddim", "--calls", "4,20", "--samples", "24"]
    code, _, err = sde_gen_command(*asked)
    assert code == 2 and len(err) == 1 and "--features has others" in err[0]
    code, out, err = sde_gen_command(*asked, "--features", "imagenet")
    assert (code, err) == (0, []) and any("| Frechet distance in ImageNet features |" in line for line in out)
    saved = json.loads((run / "compare" / "compare.json").read_text())
    assert saved["distance"] == "imagenet_distance" and saved["image_scores"]["reference"] == "54 training images"
    assert all(row["distance"]["std_error"] > 0 for row in saved["rows"]) and "FID" not in "\n".join(out)
    code, out, _ = sde_gen_command(*asked, "--features", NAME)
    saved = json.loads((run / "compare" / "compare.json").read_text())
    assert (
        code == 0
        and any("| FID |" in line for line in out)
        and saved["distance"] == "fid"
        and any(line.startswith("features  a small") for line in out)
    )
    page = (run / "report.html").read_text()
    assert "FID" in page and f"--features {NAME}" in page


def test_images_are_measured_as_the_pngs_that_would_be_written(tmp_path: Path) -> None:
    data = load_dataset("digits")
    description, x = DataDescription.of(data), data.train[:3] + 0.3
    expected = ((x.round().clamp(0, 16)) * (255 / 16)).round().to(torch.uint8)
    assert torch.equal(as_pictures(description, x), expected)
    deep = Dataset("deep", torch.tensor([0.0, 300, 65_535]).reshape(3, 1, 1, 1), levels=65_536)
    assert as_pictures(DataDescription.of(deep), deep.train).flatten().tolist() == [0, 1, 255]
    two = Dataset("two", torch.tensor([0.0, 1]).reshape(2, 1, 1, 1), levels=2)
    assert as_pictures(DataDescription.of(two), two.train + 0.2).flatten().tolist() == [0, 255]
    scores = ImageScores(data, tmp_path, NAME)
    torch.testing.assert_close(scores.features_of(x), Small().features(expected))


def test_scores_are_those_of_the_metrics(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(count, 6, generator=generator) + shift for count, shift in ((250, 0.2), (90, 0)))
    found = scores_of(Small(), ours, reference_of(theirs, "some"), seed=3)
    expected = metrics.frechet_to(ours, theirs, seed=3)
    assert found["distance"] == {"value": expected.value.value, "std_error": expected.value.std_error} and found["notes"] == []
    assert found["unbiased"]["value"] == pytest.approx(expected.unbiased.value)
    assert found["kernel"]["value"] == pytest.approx(metrics.kernel_distance(ours, theirs).value)
    score = metrics.inception_score(5 * ours, 10, 3)
    assert found["score"]["parts"] == 10 and found["score"]["published"]["value"] == pytest.approx(score.published.value)
    few = scores_of(Small(), ours[:6], reference_of(theirs[:5], "some"))
    assert "fewer than the 6 features" in few["notes"][0] and "covariance is singular" in few["notes"][1]
    assert few["score"]["parts"] == 1 and "reason" in few["unbiased"]
    assert "score" not in scores_of(Photographs(), ours, reference_of(theirs, "some"))
    about = image_scores.described(Small(), NAME, (3, 8, 8))
    assert any("its bias at so few images is not known: 6 items" in line for line in lines_of(about | few))
    assert any("extrapolated to infinitely many" in line for line in lines_of(about | found))


def test_more_samples_than_held_out_items_are_compared_at_their_number(tmp_path: Path) -> None:
    data = load_dataset("digits")
    assert data.test is not None
    small_data = Dataset("some", data.train[:200], data.test[:50], value_range=data.value_range, levels=data.levels)
    scores = ImageScores(small_data, tmp_path, NAME, seed=2)
    x = data.train[200:280]
    found = scores.beside_held_out(x)
    expected = scores.features_of(x)[rows_drawn(80, 50, 2)]
    at_size = metrics.frechet_to(expected, scores.reference.moments, seed=2, drawn=scores.reference.features).value
    assert found["held_out_size"] == 50 and found["at_held_out_size"]["value"] == pytest.approx(at_size.value)
    assert scores(x, 50)["distance"]["value"] == pytest.approx(at_size.value) and scores(x)["size"] == 80
    alone = ImageScores(Dataset("alone", data.train[:60], value_range=(0.0, 16.0)), tmp_path, NAME)
    assert "held_out" not in alone.beside_held_out(x)


def test_what_is_kept_is_of_this_data_and_these_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("digits")
    first = ImageScores(data, tmp_path, NAME).reference
    Small.seen.clear()
    kept = ImageScores(data, tmp_path, NAME).reference
    assert not Small.seen and torch.equal(kept.moments.covariance, first.moments.covariance) and kept.moments.count == 1500
    other = ImageScores(Dataset("other", 16 - data.train, levels=17, value_range=(0.0, 16.0)), tmp_path, NAME).reference
    assert Small.seen and not torch.equal(other.moments.mean, first.moments.mean)
    Small.seen.clear()
    (tmp_path / "features" / "inception.safetensors").write_bytes(b"broken")
    torch.testing.assert_close(ImageScores(data, tmp_path, NAME).reference.moments.mean, first.moments.mean)
    assert sum(Small.seen) == 1500
    Small.seen.clear()
    others = ImageScores(data, tmp_path, NAME)
    others.network.sha256 = "cd" * 32
    assert others.reference.moments.count == sum(Small.seen) == 1500
    Small.seen.clear()
    monkeypatch.setattr(Small, "name", "resized otherwise")
    assert len(ImageScores(data, tmp_path, NAME).reference.moments.mean) == 6 and sum(Small.seen) == 1500


def test_a_reference_in_a_file_takes_the_place_of_the_training_data(sde_gen_command: Command, tmp_path: Path) -> None:
    metrics.Moments.of(torch.randn(50, 6)).write(tmp_path / "ref.npz")
    asked = ["run", *TINY_RUN, "--out", str(tmp_path / "mine"), "--features", NAME, "--reference", "ref.npz"]
    code, out, err = sde_gen_command(*asked)
    assert (code, err) == (0, []) and any(f"to the moments in {tmp_path / 'ref.npz'}" in line for line in out)
    found = json.loads((tmp_path / "mine" / "metrics.json").read_text())["solvers"]["pc"]["image_scores"]
    assert (
        "kernel" not in found and found["reference_items"] == 50 and not (tmp_path / "mine" / "features" / "inception.safetensors").exists()
    )
    config = (tmp_path / "mine" / "config.yaml").read_text()
    assert f"features: inception:{tmp_path / 'weights.pth'}" in config and f"reference: {tmp_path / 'ref.npz'}" in config


def test_its_cost_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, sampling = load_dataset("digits"), resolve({"sampling": {"features": NAME, "samples": 100}}).sampling
    monkeypatch.setattr(cost, "metrics_seconds", lambda *_: 30.0)
    monkeypatch.setattr(ImageScores, "seconds", lambda self, samples: 10.0 * samples)
    assert cost.sampling_cost(sampling, data, 0.01, 100, tmp_path).endswith("metrics about 17 min")
    monkeypatch.undo()
    monkeypatch.setattr(image_scores, "load_features", lambda text: Small())
    scores, ticks = ImageScores(data, tmp_path, NAME), iter((0.0, 8.0) * 2)
    monkeypatch.setattr(image_scores.time, "monotonic", lambda: next(ticks))
    assert scores.seconds(100) == 100 + 1500 + 100
    _ = scores.reference
    assert scores.seconds(400) == 400 + 297


FAULTS: dict[str, tuple[list[str], str]] = {
    "no such features": (["--features", "fid"], "unknown features 'fid'; choose from labels, imagenet, inception:FILE"),
    "no file": (["--features", "inception:"], "unknown features 'inception:'"),
    "missing file": (["--features", "inception:none.pth"], "none.pth: no such file"),
    "no images": (["--features", NAME, "--data", "gaussians8"], "images (1 or 3 channels, height, width) are needed"),
    "reference alone": (["--reference", "ref.npz"], "needs features that others have"),
    "missing reference": (["--features", NAME, "--reference", "none.npz"], "none.npz: no moments can be read (no such file)"),
    "other width": (["--features", NAME, "--reference", "ref.npz"], "ref.npz holds moments of 5 features, a small network has 6"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_features_are_one_line_before_any_work(
    sde_gen_command: Command, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, message = FAULTS[fault]
    metrics.Moments.of(torch.randn(50, 5)).write(tmp_path / "ref.npz")
    if fault == "missing file":
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    code, out, err = sde_gen_command("run", *TINY_RUN, *flags, "--out", str(tmp_path / "mine"))
    assert code == 2 and len(err) == 1 and message in err[0]
    assert not (tmp_path / "mine").exists() and not any(line.startswith("trained") for line in out)
    code, _, err = sde_gen_command("run", "--dry-run", *TINY_RUN, *flags)
    assert code == 2 and len(err) == 1 and message in err[0]


def test_settings_of_the_classifier_need_nothing(tmp_path: Path) -> None:
    check_settings("labels", None, load_dataset("gaussians8"))
    with pytest.raises(ConfigError, match=r"sampling\.features: unknown features 'x'"):
        resolve({"sampling": {"features": "x"}})


# ---------------------------------------------------------------- images without a run


def asked(*arguments: str) -> list[str]:
    return ["distance", *arguments, "--no-progress", "--device", "cpu"]


def folder_features(folder: Path) -> torch.Tensor:
    images = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in sorted(folder.glob("*.png"))]
    return Small().features(torch.stack(images))


def test_a_folder_to_a_folder_to_moments_and_to_a_set(sde_gen_command: Command, tmp_path: Path) -> None:
    ours, theirs = pictures(tmp_path / "ours", 40, 1), pictures(tmp_path / "theirs", 61, 2)
    expected = metrics.frechet_to(folder_features(ours), folder_features(theirs)).value
    code, out, err = sde_gen_command(*asked("ours", "theirs", "--features", NAME, "--out", "found.json", "--save", "ours.npz"))
    assert (code, err) == (0, [])
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert found["distance"]["value"] == pytest.approx(expected.value) and found["size"] == 40 and found["reference_items"] == 61
    assert found["distance"]["std_error"] == pytest.approx(expected.std_error) and "61 images of theirs" in "\n".join(out)
    assert metrics.Moments.read(tmp_path / "ours.npz").count == 40
    code, _, _ = sde_gen_command(*asked("theirs", "--features", NAME, "--save", "theirs.npz"))
    assert code == 0 and sde_gen_command(*asked("ours", "theirs.npz", "--features", NAME, "--out", "again.json"))[0] == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["distance"]["value"] == pytest.approx(expected.value) and again["distance"]["std_error"] < expected.std_error
    code, out, _ = sde_gen_command(*asked("ours", "digits", "--features", "imagenet", "--images", "30"))
    assert code == 0 and "at 30 images to 1500 training images of digits" in "\n".join(out) and "FID" not in "\n".join(out)


def test_arrays_need_a_range_and_other_sizes_are_said(sde_gen_command: Command, tmp_path: Path) -> None:
    pictures(tmp_path / "ours", 30, 1, size=12, grey=True)
    x = np.random.default_rng(0).random((40, 8, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "floats.npz", x=x)
    np.savez(tmp_path / "bytes.npz", x=(255 * x).round().astype(np.uint8))
    code, _, err = sde_gen_command(*asked("floats.npz", "ours", "--features", NAME))
    assert code == 2 and len(err) == 1 and err[0].startswith("sde-gen: floats.npz: shape (40, 8, 8, 3)") and "--axes" in err[0]
    code, _, err = sde_gen_command(*asked("floats.npz", "ours", "--features", NAME, "--axes", "NHWC"))
    assert code == 2 and len(err) == 1 and "give --range" in err[0]
    values = []
    for name, flags in (("floats.npz", ["--range", "0", "1"]), ("bytes.npz", [])):
        code, out, _ = sde_gen_command(*asked(name, "ours", "--features", NAME, "--axes", "NHWC", "--out", "found.json", *flags))
        assert code == 0 and "warning   images of 8x8 beside a reference of 12x12" in out[0]
        values.append(json.loads((tmp_path / "found.json").read_text())["distance"]["value"])
    assert values[0] == pytest.approx(values[1])


DISTANCE_FAULTS: dict[str, tuple[list[str], str]] = {
    "nothing to do": (["ours", "--features", NAME], "give a REFERENCE to compare with, or --save"),
    "no images": (["gaussians8", "ours", "--features", NAME], "gaussians8: items of shape (2,); images"),
    "no such folder": (["nowhere/", "ours", "--features", NAME], "nowhere"),
    "few": (["few", "ours", "--features", NAME], "few has 5 images; at least 20 are needed"),
    "too many": (["ours", "ours", "--features", NAME, "--images", "99"], "--images 99 of the 25 in ours"),
    "labels": (["ours", "ours", "--features", "labels"], "fitted to a data set"),
    "other moments": (["ours", "wide.npz", "--features", NAME], "holds moments of 9 features"),
    "broken moments": (["ours", "odd.npz", "--features", NAME], "odd.npz: mu is float64 (3,) and sigma float64 (2, 2)"),
    "not a number": (["nan.npy", "ours", "--features", NAME, "--range", "0", "1"], "NaN"),
    "range": (["x.npy", "ours", "--features", NAME, "--range", "1", "0"], "--range takes black and white, the lower first, got 1.0 0.0"),
    "out": (["ours", "ours", "--features", NAME, "--out", "no/where.json"], "--out no/where.json: there is no directory"),
}


@pytest.mark.parametrize("fault", DISTANCE_FAULTS)
def test_bad_images_are_one_line(sde_gen_command: Command, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, message = DISTANCE_FAULTS[fault]
    pictures(tmp_path / "ours", 25, 1)
    pictures(tmp_path / "few", 5, 1)
    metrics.Moments.of(torch.randn(50, 9)).write(tmp_path / "wide.npz")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(2))
    x = np.random.default_rng(0).random((30, 3, 8, 8))
    np.save(tmp_path / "x.npy", x)
    x[3, 0, 0, 0] = math.nan
    np.save(tmp_path / "nan.npy", x)
    if fault == "labels":
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    code, _, err = sde_gen_command(*asked(*arguments))
    assert code == 2 and len(err) == 1 and message in err[0]


def test_the_real_network_makes_moments_that_others_read(sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distance, "LEAST", 4)
    pictures(tmp_path / "ours", 4, 1)
    torch.save(random_state(), tmp_path / "weights.pth")
    code, out, err = sde_gen_command(*asked("ours", "--features", "pytorch-fid:weights.pth", "--save", "ours.npz"))
    assert (code, err) == (0, []) and "moments   ours.npz: of 4 images" in out
    with np.load(tmp_path / "ours.npz") as file:
        assert file["mu"].shape == (2048,) and file["sigma"].shape == (2048, 2048) and file["mu"].std() > 0
