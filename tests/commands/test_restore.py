"""`sde-gen restore`: on tiny runs for what it reads, says and leaves; on exact models for its numbers."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from toys import TINY_RUN, Command

from sde_gen import Dataset, Moments, Normalizer, Prediction, ScoreModel, make_sde
from sde_gen.commands import restore as command
from sde_gen.commands import restore_problems
from sde_gen.commands.config import ConfigError, resolve
from sde_gen.commands.measurement_text import OPERATORS, parse_noise, parse_operator
from sde_gen.commands.restore import restore_run
from sde_gen.commands.restore_settings import RestoreSettings, checked
from sde_gen.commands.runs import OF_NETWORK, TrainedRun
from sde_gen.data.write import DataDescription
from sde_gen.diagnostics.calibration import coverage
from sde_gen.exact.mixtures import GaussianData
from sde_gen.inverse import METHODS, MMPS, Gaussian, Mask, Posterior
from sde_gen.inverse.request import Request
from sde_gen.metrics import features


@pytest.fixture(autouse=True)
def short_feature_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks how good the features are."""
    monkeypatch.setattr(features, "_SETTINGS", features._SETTINGS | {"steps": 20, "epochs": 1, "least_steps": 10})


FAST = ("--samples", "3", "--steps", "2", "--no-progress")


def exact_run(directory: Path) -> tuple[TrainedRun, GaussianData]:
    """A run whose network is the exact score of Gaussian data in units of their own; and these data in normalised units."""
    generator = torch.Generator().manual_seed(3)
    factor = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    data = GaussianData(torch.zeros(5), factor @ factor.T / 5 + 0.1 * torch.eye(5, dtype=torch.float64))
    shift, scale = torch.tensor([3.0, -1.0, 0.0, 10.0, 5.0]), torch.tensor([2.0, 0.5, 1.0, 4.0, 1.0])
    sde, mean, covariance = make_sde("vp"), *data.moments()
    moments = Moments(mean, covariance=covariance)
    model = ScoreModel(data.score(sde), sde, prediction="score", prior="matched", moments=moments, normalizer=Normalizer(shift, scale))
    items = Dataset("exact", shift + scale * data.sample(400, 1).float(), shift + scale * data.sample(60, 2).float())
    return TrainedRun(directory, resolve({"data": {"name": "gaussians8"}}), items, model), data


class Narrow(MMPS):
    """Posterior samples that lie too near to their mean."""

    def draw(self, request: Request) -> Posterior:
        found = super().draw(request)
        mean = found.mean()[:, None]
        return Posterior(mean + 0.5 * (found.x - mean), None, found.ess, None, None, found.nfe)


def test_numbers_are_the_exact_posterior_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = exact_run(tmp_path)
    monkeypatch.setitem(METHODS, "narrow", Narrow)
    lines: list[str] = []
    chosen = {"items": 25, "samples": 16, "steps": 100, "calibrate": 40, "batch": 4000, "solver": "ancestral"}
    settings = RestoreSettings("mask random 0.4 1", "0.3", ("twisted", "mmps", "narrow"), **chosen)  # type: ignore[arg-type]
    result = restore_run(run, checked(settings), show=False, say=lines.append)
    rows = result["methods"]
    for method in ("twisted", "mmps"):  # exact on Gaussian data, up to the steps
        assert rows[method]["calibration"]["model"]["calibrated"], method
    for kind in ("model", "held_out"):
        assert not rows["narrow"]["calibration"][kind]["calibrated"] and rows["narrow"]["calibration"][kind]["sbc_p"] < 1e-4
    assert rows["twisted"]["calibration"]["model"]["problems"] == 40 and rows["twisted"]["calibration"]["held_out"]["problems"] == 40
    # the noise is a share of each column's spread, and the evidence that of a Gaussian
    operator, held = Mask.random((5,), 0.4, 1), operator_kept(5, 0.4, 1)
    rows_of = restore_problems.rows_drawn(60, 25, 0)
    truths = run.data.test[rows_of]  # type: ignore[index]
    y = command.Measurement(operator, Gaussian(0.3 * run.model.normalizer.scale)).simulate(truths, 0)  # type: ignore[union-attr]
    scale, shift = run.model.normalizer.scale, run.model.normalizer.shift  # type: ignore[union-attr]
    covariance = torch.diag(scale) @ data.covariance @ torch.diag(scale) + torch.diag((0.3 * scale) ** 2)
    law = stats.multivariate_normal(shift[held].numpy(), covariance[held][:, held].numpy())
    exact = np.mean([law.logpdf(row[held].numpy()) for row in y])
    found = rows["twisted"]["log_evidence"]["value"]
    assert found == pytest.approx(exact, abs=0.1) and "log_evidence" not in rows["mmps"]
    # TARP's references depend on the measurement, and lie where it points
    task = restore_problems.Task(run, DataDescription.of(run.data), command.Measurement(operator, Gaussian(0.3 * scale)), settings, False)
    references, clean = task.references(y), run.model.normalizer.encode(truths)  # type: ignore[union-attr]
    assert torch.allclose(references.square().mean(1), torch.ones(len(y))) and bool((references[:, ~held] == 0).all())
    assert float((references * clean)[:, held].mean()) > 0.5
    # the error of the posterior's mean, and its 90 % intervals
    gain = (torch.diag(scale) @ data.covariance @ torch.diag(scale))[:, held] @ torch.linalg.inv(covariance[held][:, held])
    means = shift + (y[:, held].double() - shift[held]) @ gain.T
    error = (means - truths).square().mean(1).sqrt().mean()
    for method in ("twisted", "mmps"):
        assert rows[method]["error"]["value"] == pytest.approx(float(error), rel=0.12)
        value, low, high = command.shown_coverage(rows[method]["coverage"])
        assert low <= value <= high
    assert command.shown_coverage(rows["narrow"]["coverage"])[0] < 0.8
    assert lines[0].startswith(
        "restoring 25 held-out items of exact: mask random 0.4 1, noise 0.3 of each column's standard deviation; 16 samples"
    )
    assert sum("calibrated (" in line for line in lines) == 6 and sum("NOT calibrated" in line for line in lines) >= 2


def operator_kept(size: int, share: float, seed: int) -> torch.Tensor:
    kept: torch.Tensor = Mask.random((size,), share, seed).kept((size,))
    return kept


def test_gaps_of_a_table_are_filled_with_the_conditional_law(tmp_path: Path) -> None:
    run, data = exact_run(tmp_path)
    scale, shift = run.model.normalizer.scale, run.model.normalizer.shift  # type: ignore[union-attr]
    x = shift + scale * data.sample(20, 7)
    x[torch.rand(20, 5, generator=torch.Generator().manual_seed(1)) < 0.4] = np.nan
    x = x[~x.isnan().all(1)]
    np.save(tmp_path / "gaps.npy", x.numpy())
    settings = RestoreSettings(input=str(tmp_path / "gaps.npy"), methods=("mmps",), samples=100, steps=40, written=2)
    result = restore_run(run, checked(settings), tmp_path / "out", show=False, say=lambda line: None)
    mean, std, one, two = (np.load(tmp_path / "out" / f"{name}.npy") for name in ("mean", "std", "sample-1", "sample-2"))
    known = ~x.isnan().numpy()
    for values in (mean, one, two):
        np.testing.assert_array_equal(values[known], x.numpy()[known])
    assert (std[known] == 0).all() and (std[~known] > 0).all() and (one[~known] != two[~known]).all()
    covariance = (torch.diag(scale) @ data.covariance @ torch.diag(scale)).numpy()
    off, ratio = [], []
    for row, seen, found, spread in zip(x.numpy(), known, mean, std, strict=True):
        if seen.all():
            continue
        gain = covariance[np.ix_(~seen, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        sd = np.sqrt(np.diag(covariance[np.ix_(~seen, ~seen)] - gain @ covariance[np.ix_(seen, ~seen)]))
        off += list((found[~seen] - shift.numpy()[~seen] - gain @ (row[seen] - shift.numpy()[seen])) / sd)
        ratio += list(spread[~seen] / sd)
    # a tenth by the number of samples; the first-order ancestral steps would leave the spread 13 % short
    assert np.sqrt(np.mean(np.square(off))) < 0.13 and np.mean(ratio) == pytest.approx(1.0, abs=0.04)
    assert result["noise"] == "none"
    small = replace(settings, samples=24, calibrate=40, items=2)
    result = restore_run(run, checked(small), tmp_path / "out", show=False, say=lambda line: None)
    assert result["methods"]["mmps"]["calibration"]["model"]["calibrated"]
    assert not (tmp_path / "out" / "sample-3.npy").exists()


def test_coverage_is_that_of_what_is_not_known() -> None:
    """Entries that are given exactly are covered at whatever share is asked for, and would hide that the others are not."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(400, 6, generator=generator) < 0.3
    hidden[:, 0] = False
    hidden[:, 1] |= ~hidden.any(1)
    uniform = torch.rand(400, 6, generator=generator, dtype=torch.float64)
    ranks = torch.where(hidden, 0.5 + 0.4 * (uniform - 0.5), uniform)  # too wide where they are not known
    found = restore_problems.coverage_of(ranks, hidden)
    assert found.value.tolist() == [pytest.approx(x, abs=0.06) for x in (1.0, 1.0, 1.0, 1.0)]
    ranks = torch.where(hidden, uniform, 0.5)
    found = restore_problems.coverage_of(ranks, hidden)
    assert bool(found.inside.all()) and found.value.tolist() == [pytest.approx(level, abs=0.05) for level in found.levels]
    assert found.each.shape == (5, 4) and bool((found.std_error > 0).all())
    assert float(coverage(ranks).value[0]) > 0.8


def test_held_out_digits(sde_gen_command: Command, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    assert sde_gen_command("run", *TINY_RUN, "--solver", "ddim", "--labels", "--out", str(run))[0] == 0
    asked = ("restore", "--run", str(run), "--operator", "mask random 0.9", "--noise", "0.1", "--method", "tds", "--method", "mmps")
    code, out, err = sde_gen_command(*asked, *FAST, "--items", "3", "--calibrate", "20")
    assert (code, err) == (0, []), err
    assert any(
        "restoring 3 held-out items of digits: mask random 0.9, noise std 1.6, 0.1 of the data's range 0 .. 16; 3 samples" in line
        for line in out
    )
    place = run / "restore" / "mask-random-0.9-noise-0.1"
    assert sorted(path.name for path in place.iterdir()) == ["calibration.png", "mmps.png", "restore.json", "twisted.png"]
    saved = json.loads((place / "restore.json").read_text())
    assert list(saved["methods"]) == ["twisted", "mmps"] and saved["methods"]["mmps"]["network_calls"] == 3 * 3
    for name, row in saved["methods"].items():
        assert row["seconds"] > 0 and row["error"]["value"] > 0 and len(row["coverage"]["value"]) == 4
        assert set(row["calibration"]) == {"model", "held_out"} and ("log_evidence" in row) == (name == "twisted")
        assert any(line.startswith(f"| `{name}` | {row['network_calls']:.0f} |") for line in out)
    with Image.open(place / "twisted.png") as picture:
        assert min(picture.size) > 50
    page = (run / "report.html").read_text()
    for text in (
        "Restored data",
        "mask random 0.9, noise std 1.6",
        "Are they calibrated?",
        "truths from the model",
        "experiments/restore.py",
    ):
        assert text in page
    verdicts = {row["calibration"]["model"]["calibrated"] for row in saved["methods"].values()}
    assert ("its posteriors are not calibrated" in page) == (False in verdicts)
    # the command on the page gives the same numbers
    again = next(line for line in page.splitlines() if "experiments/restore.py" in line)
    words = shlex.split(again[again.index("experiments/restore.py") :].split("</code>")[0].replace("&#39;", "'").replace("&#34;", '"'))
    assert sde_gen_command("restore", *words[1:], "--no-progress")[0] == 0
    after = json.loads((place / "restore.json").read_text())
    for part in (saved, after):
        for row in part["methods"].values():
            del row["seconds"]
    assert after == saved
    assert "restore" in OF_NETWORK, "another network takes the place of what this one restored"


def test_a_conditional_table(sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{a},{'north' if k % 4 else 'south'},{k % 7}" for k, a in enumerate(rng.normal(size=80))]
    (tmp_path / "my.csv").write_text("\n".join(["a,where,count", *rows]))
    asked = ("--data", "my.csv", "--label-column", "where", "--labels")
    assert sde_gen_command("run", *TINY_RUN, "--solver", "ddim", *asked)[0] == 0
    (tmp_path / "gaps.csv").write_text("id,count,a,where\nq,,0.50,south\nr,3,,north\ns,2,,\nt,5,1e-1,south\n")
    given: list[Any] = []
    draw = restore_problems.posterior

    def watched(*arguments: Any, **options: Any) -> Posterior:
        given.append(options["cond"])
        return draw(*arguments, **options)

    monkeypatch.setattr(restore_problems, "posterior", watched)
    code, out, err = sde_gen_command("restore", "--run", "runs/my.csv-vp", "--input", "gaps.csv", *FAST, "--written", "1")
    assert (code, err) == (0, []), err
    labels = given[0]["label"].tolist()
    assert labels[:2] + labels[3:] == [1, 0, 1] and labels[2] not in (0, 1), "what has no label is given none"
    root = Path("runs/my.csv-vp/restore/gaps-gaps-noise-0/restored")
    assert sorted(path.name for path in root.iterdir()) == ["mean.csv", "sample-1.csv", "std.csv"]
    sample = list(csv.reader((root / "sample-1.csv").open()))
    assert sample[0] == ["id", "count", "a", "where"] and sample[4] == ["t", "5", "1e-1", "south"]
    assert sample[1][2:] == ["0.50", "south"] and sample[1][1].lstrip("-").isdigit(), "a column of whole numbers"
    assert sample[2][1] == "3" and np.isfinite(float(sample[2][2]))
    assert any(line.startswith("restored") and "std.csv" in line for line in out)
    given.clear()
    assert sde_gen_command("restore", "--run", "runs/my.csv-vp", "--input", "gaps.csv", *FAST, "--label", "north")[0] == 0
    assert given[0]["label"].tolist() == [0] * 4
    given.clear()
    assert sde_gen_command("restore", "--run", "runs/my.csv-vp", "--operator", "mask random 0.5", *FAST, "--items", "4")[0] == 0
    assert set(given[0]["label"].tolist()) <= {0, 1} and len(given[0]["label"]) == 4
    for name, what, message in (
        ("empty.csv", "id,count,a,where\nq,,,south\n", "item 0 has nothing but gaps"),
        ("other.csv", "id,count,a,where\nq,1,,west\n", "label 'west': no such label; choose from north, south"),
        ("less.csv", "id,count\nq,1\n", "lacks column a of my.csv"),
    ):
        (tmp_path / name).write_text(what)
        code, out, err = sde_gen_command("restore", "--run", "runs/my.csv-vp", "--input", name, *FAST)
        assert code == 2 and len(err) == 1 and message in err[0], err
    code, out, err = sde_gen_command("restore", "--run", "runs/my.csv-vp", "--operator", "grey", *FAST)
    assert code == 2 and len(err) == 1 and "--operator 'grey' does not fit data of shape 2: Grey takes samples (C, *spatial)" in err[0]


def test_problems_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    run, _ = exact_run(tmp_path)
    results = []
    for batch in (16, 48, 10_000):
        settings = RestoreSettings("mask random 0.4", "0.3", items=5, samples=16, steps=10, batch=batch)
        results.append(restore_run(run, settings, show=False, say=lambda line: None)["methods"]["twisted"])
    for other in results[1:]:
        assert other["log_evidence"]["value"] == pytest.approx(results[0]["log_evidence"]["value"], rel=1e-5)
        assert other["error"]["value"] == pytest.approx(results[0]["error"]["value"], rel=1e-4)


def test_samples_of_few_lineages_are_warned_of(tmp_path: Path) -> None:
    run, _ = exact_run(tmp_path)
    for noise, particles, warned in (("0.01", 12, True), ("2", 64, False)):
        lines: list[str] = []
        settings = RestoreSettings("denoise", noise, ("twisted", "mmps"), items=3, samples=8, particles=particles, steps=4)
        rows = restore_run(run, checked(settings), show=False, say=lines.append)["methods"]
        assert 1 <= rows["twisted"]["lineages"] < particles and "lineages" not in rows["mmps"]
        (line,) = [line for line in lines if line.startswith("| `twisted`")]
        assert line.endswith(f" of {particles} | {rows['twisted']['lineages']:.1f} |")
        said = [line for line in lines if "come from fewer than 4 of those at the start" in line]
        assert bool(said) == warned and all(line.startswith("warning   twisted: the particles of") for line in said)


def test_every_operator_and_noise_is_read() -> None:
    examples = {
        "mask box": ("mask box 4", (1, 8, 8)),
        "mask random": ("mask random 0.5 3", (1, 8, 8)),
        "outpaint": ("outpaint 4 2", (3, 8, 8)),
        "gaps": ("gaps", (4,)),
        "denoise": ("denoise", (1, 16)),
        "grey": ("grey", (3, 8, 8)),
        "downsample": ("downsample 2", (1, 8, 8)),
        "blur": ("blur 1.0", (1, 8, 8)),
        "crop": ("crop 2 10", (2, 16)),
    }
    assert set(examples) == set(OPERATORS) - {"matrix"}
    for name, (text, shape) in examples.items():
        found, build = parse_operator(text)
        operator = build(shape)
        assert found == name and len(operator(torch.zeros(3, *shape))) == 3
        noise, line = parse_noise("0.1")(operator, shape, torch.tensor(16.0), "the range")
        assert isinstance(noise, Gaussian) and float(noise.std) == pytest.approx(1.6) and "0.1 of the range" in line
    mask = parse_operator("mask box 4")[1]((1, 8, 8)).kept((1, 8, 8))
    assert mask is not None and int((~mask).sum()) == 16
    # a share of columns' spreads goes through the operator
    crop = parse_operator("crop 1 3")[1]((4,))
    noise, _ = parse_noise("0.5")(crop, (4,), torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64), "x")
    assert isinstance(noise, Gaussian) and noise.std.tolist() == [1, 2]
    for text in ("gaussian 2", "poisson 3", "quantised 1 0.1", "0"):
        parse_noise(text)(mask_of(), (4,), torch.tensor(1.0), "x")


def mask_of() -> Mask:
    return Mask(torch.tensor([True, False, True, True]))


def test_matrix_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.array([[1.0, 2.0, 0.0]]))
    operator = parse_operator(f"matrix {tmp_path / 'm.npy'}")[1]((3,))
    assert operator(torch.tensor([[1.0, 1.0, 1.0]])).tolist() == [[3.0]]
    noise, _ = parse_noise("0.5")(operator, (3,), torch.tensor([3.0, 2.0, 9.0], dtype=torch.float64), "x")
    assert isinstance(noise, Gaussian) and noise.std.tolist() == [2.5]
    with pytest.raises(ValueError, match=r"does not fit data of shape 4: a matrix \(1, 3\) takes samples of 3 numbers"):
        parse_operator(f"matrix {tmp_path / 'm.npy'}")[1]((4,))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--operator or --input is needed: mask box SIZE"),
        (["--operator", "mask bx 4"], "--operator 'mask bx 4': choose from mask box SIZE"),
        (["--operator", "mask box"], "--operator 'mask box': mask box SIZE ... is needed"),
        (["--operator", "downsample two"], "--operator 'downsample two': downsample FACTOR is needed"),
        (["--operator", "blur 1 2"], "blur PIXELS is needed"),
        (["--operator", "gaps"], "are the gaps of an --input"),
        (["--operator", "grey", "--noise", "-1"], "--noise '-1': choose from a share of the data's range"),
        (["--operator", "grey", "--noise", "gaussian"], "--noise 'gaussian': choose from"),
        (["--operator", "grey", "--noise", "poisson 0"], "--noise 'poisson 0': gain must be positive"),
        (["--operator", "grey", "--method", "oracle"], "method 'oracle' needs a law that is known; choose from twisted, gibbs"),
        (["--operator", "grey", "--method", "magic"], "unknown method 'magic'; choose from"),
        (["--operator", "grey", "--method", "mmps", "--method", "mmps"], "methods must be different names"),
        (["--operator", "grey", "--solver", "magic"], "unknown solver 'magic'"),
        (["--operator", "grey", "--items", "1"], "items must be a whole number of at least 2, got 1"),
        (["--operator", "grey", "--samples", "1"], "samples must be a whole number of at least 2, got 1"),
        (["--operator", "grey", "--particles", "0"], "particles must be a whole number of at least 1"),
        (["--operator", "grey", "--calibrate", "5"], "at least 20 problems"),
        (["--operator", "grey", "--seed", "-1"], "seed must be in"),
        (["--input", "nowhere.csv"], "--input nowhere.csv: no such file"),
        (["--operator", "grey", "--run", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_bad_input_is_one_line(sde_gen_command: Command, arguments: list[str], said: str) -> None:
    code, out, err = sde_gen_command("restore", *arguments)
    assert code == 2 and out == [] and len(err) == 1 and said in err[0], err


def test_data_in_other_units_are_warned_of(tmp_path: Path) -> None:
    run, _ = exact_run(tmp_path)
    np.save(tmp_path / "far.npy", np.full((3, 5), 1e7))
    lines: list[str] = []
    settings = RestoreSettings(input=str(tmp_path / "far.npy"), noise="0.1", methods=("ddnm",), samples=2, steps=2, written=0)
    restore_run(run, checked(settings), show=False, say=lines.append)
    (said,) = [line for line in lines if line.startswith("warning")]
    assert "ddnm: y lies" in said and "are both in the data's own units?" in said


def test_what_does_not_fit_the_run_is_one_line(tmp_path: Path) -> None:
    run, _ = exact_run(tmp_path)
    np.save(tmp_path / "wide.npy", np.zeros((3, 7)))
    for settings, said in (
        (RestoreSettings("crop 3 9"), "--operator 'crop 3 9' does not fit data of shape 5"),
        (RestoreSettings("crop 1 2 3"), "a window is two numbers"),
        (RestoreSettings("mask random 1.5"), "the hidden share must be in (0, 1), got 1.5"),
        (RestoreSettings("denoise", label="3"), "--label 3: this network was trained without labels"),
        (RestoreSettings(input=str(tmp_path / "wide.npy")), "items of shape (7,); (5,) is needed"),
        (RestoreSettings("denoise", solver="ode"), "method 'twisted': particles need a fixed-step solver"),
    ):
        with pytest.raises(ConfigError) as caught:
            restore_run(run, settings, show=False, say=lambda line: None)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_method_that_fails_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = exact_run(tmp_path)

    class Wild(MMPS):
        def correct(self, x: torch.Tensor, *arguments: Any) -> Prediction:
            return Prediction(x * float("nan"))

    monkeypatch.setitem(METHODS, "wild", Wild)
    lines: list[str] = []
    settings = RestoreSettings("denoise", methods=("wild", "mmps"), items=3, samples=4, steps=4)
    rows = restore_run(run, settings, show=False, say=lines.append)["methods"]
    assert "are not finite" in rows["wild"]["reason"] and rows["mmps"]["error"]["value"] > 0
    assert any(line.startswith("| `wild` | solver") for line in lines)
