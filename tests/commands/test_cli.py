import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from toys import Command

from sde_gen import load
from sde_gen.sdes import SDES
from sde_gen.solvers import SOLVERS
from sde_gen.training.store import newest
from sde_gen.training.trainer import Trainer

QUICK = [
    *("--train-steps", "12", "--batch", "16", "--samples", "32", "--no-progress"),
    *("--set", "model.options={width: 16, depth: 1}", "--set", "training.evaluations=2"),
]
FEW = ("--set", "data.limit=500")
"""Of the eight Gaussians: their distances and baselines cost the size of the set."""


@pytest.fixture
def command(sde_gen_command: Command) -> Command:
    """`sde-gen run` in an empty directory."""
    return partial(sde_gen_command, "run")


def test_a_run_leaves_what_it_says_and_a_second_one_only_samples(command: Command, tmp_path: Path) -> None:
    steps = ["--network", "mlp", "--steps", "5"]
    code, out, err = command(*QUICK, *steps, "--solver", "pc")
    assert (code, err) == (0, [])
    run = tmp_path / "runs" / "digits-vp"
    for name in ("config.yaml", "checkpoint/00000001/weights.safetensors", "metrics.json", "history.json", "history.jsonl"):
        assert (run / name).stat().st_size > 0, name
    for name in ("samples.png", "denoising.gif", "forward.png", "loss.png", "solvers/pc/samples.png"):
        with Image.open(run / name) as image:
            assert min(image.size) > 100, name
    assert len(list((run / "snapshots").glob("*.png"))) == 2
    text = "\n".join(out)
    for word in ("MLP", "Frechet", "+-", "11 network calls per sample", "samples.png", "memorised", "12 steps of 16"):
        assert word in text, word
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["solvers"]["pc"]["network_calls"] == 11
    assert metrics["solvers"]["pc"]["frechet_distance"]["std_error"] > 0
    first = (newest(run / "checkpoint") / "weights.safetensors").read_bytes()

    code, out, err = command(*QUICK, "--network", "mlp", "--solver", "ancestral", "--steps", "4")
    assert (code, err) == (0, [])
    assert out[0].startswith("reusing   the network in runs/digits-vp/checkpoint (12 steps")
    assert (newest(run / "checkpoint") / "weights.safetensors").read_bytes() == first
    assert set(json.loads((run / "metrics.json").read_text())["solvers"]) == {"pc", "ancestral"}
    assert (run / "solvers" / "pc" / "samples.png").exists() and (run / "solvers" / "ancestral" / "samples.png").exists()

    code, out, err = command(*QUICK, *steps, "--lr", "0.5")
    assert code == 2 and len(err) == 1
    assert "training.lr" in err[0] and "-> 0.5" in err[0] and "--retrain" in err[0]
    assert (newest(run / "checkpoint") / "weights.safetensors").read_bytes() == first

    code, out, err = command(*QUICK, *steps, "--lr", "0.5", "--retrain")
    assert (code, err) == (0, [])
    assert (newest(run / "checkpoint") / "weights.safetensors").read_bytes() != first
    assert set(json.loads((run / "metrics.json").read_text())["solvers"]) == {"pc"}


def test_a_fitted_grid_is_kept_with_the_checkpoint(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_gen.sampling.fitting.EVALUATIONS", 60)
    data = ["--data", "gaussians8", *FEW, "--samples", "64", "--solver", "angle", "--steps", "3"]
    code, out, err = command(*QUICK, *data, "--grid", "fitted")
    assert (code, err) == (0, [])
    text = "\n".join(out)
    assert "fitted    angle at 3 steps: distance to the exact flow" in text and "(fitted in" in text
    assert "sampled   64 with angle, fitted grid: 4 network calls per sample" in text
    assert "network evaluations of one sample" in text
    (kept,) = json.loads((newest(tmp_path / "runs" / "gaussians8-vp" / "checkpoint") / "model.json").read_text())["fitted"]
    assert (kept["solver"], kept["steps"], len(kept["times"])) == ("angle", 3, 4) and kept["error"] <= kept["default_error"]

    code, out, err = command(*QUICK, *data, "--grid", "fitted")
    assert (code, err) == (0, []) and any("(stored with the checkpoint)" in line for line in out)
    code, out, err = command(*QUICK, *data)
    assert (code, err) == (0, []) and any("with angle, fitted grid:" in line for line in out), "used where it matches"


@pytest.mark.parametrize("name", ["subvp", "ddpm"])  # the loops over all are in sdes/, sampling/ and solvers/
def test_other_sdes_from_the_command_line(name: str, command: Command, tmp_path: Path) -> None:
    code, out, err = command(*QUICK, "--data", "gaussians8", *FEW, "--sde", name, "--solver", "em", "--steps", "3", "--samples", "64")
    assert (code, err) == (0, [])
    metrics = json.loads((tmp_path / "runs" / f"gaussians8-{name}" / "metrics.json").read_text())
    assert len(metrics["solvers"]["em"]["mode_fractions"]) == 8
    assert any(line.startswith("modes") for line in out)


def test_dry_run_prints_what_config_reads_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    code, out, err = command("--dry-run", "--sde", "ve", "--set", "sde.settings.sigma_max=30", "--seed", "7", "--lr", "1e-4")
    assert (code, err) == (0, [])
    assert list(tmp_path.iterdir()) == []
    resolved = yaml.safe_load("\n".join(out))
    assert resolved["sde"] == {"name": "ve", "settings": {"sigma_max": 30}}
    assert resolved["training"]["seed"] == resolved["sampling"]["seed"] == 7
    (tmp_path / "again.yaml").write_text("\n".join(out))
    code, again, err = command("--dry-run", "--config", "again.yaml")
    assert [line for line in again if line[0] != "#"] == [line for line in out if line[0] != "#"]
    assert [line[:10] for line in out if line[0] == "#"][:2] == ["# runs/dig", "# expected"]
    code, over, err = command("--dry-run", "--config", "again.yaml", "--lr", "0.25")
    assert yaml.safe_load("\n".join(over))["training"]["lr"] == 0.25


def test_an_interrupted_run_goes_on_to_the_same_network(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*QUICK, "--data", "gaussians8", *FEW, "--solver", "em", "--steps", "3"]
    assert command(*arguments, "--out", "whole")[0] == 0
    advance = Trainer.advance

    def interrupted(self: Trainer) -> Any:
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    code, _, err = command(*arguments, "--out", "parts")
    assert code == 130 and err == ["sde-gen: interrupted at step 7 of 12; the same command goes on from there"]
    monkeypatch.setattr(Trainer, "advance", advance)
    code, _, err = command(*arguments, "--out", "parts", "--lr", "0.25")
    assert code == 2 and "training.lr" in err[0]
    code, out, err = command(*arguments, "--out", "parts")
    assert (code, err) == (0, []) and "resuming" in out[0] and "at step 7 of 12" in out[0]
    whole, parts = (load(tmp_path / name / "checkpoint") for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "history.jsonl").read_text().splitlines()] for name in ("whole", "parts")
    ]
    assert steps[0] == steps[1] == list(range(1, 13))
    assert "reusing" in command(*arguments, "--out", "parts")[1][0]


BAD: dict[str, tuple[list[str], str]] = {
    "fit of a stochastic solver": (["--solver", "em", "--grid", "fitted"], "deterministic fixed-step solvers only, got 'em'"),
    "fit of one step": (["--solver", "angle", "--steps", "1", "--grid", "fitted"], "2 steps or more, got 1"),
    "sde": (["--sde", "vq"], "unknown SDE 'vq'; choose from vp, subvp, ve, cosine"),
    "solver": (["--solver", "rk45"], "unknown solver 'rk45'; choose from em, pc, ode, ancestral"),
    "network": (["--network", "resnet"], "unknown network 'resnet'"),
    "data": (["--data", "cats"], "unknown data 'cats'"),
    "grid": (["--grid", "log"], "unknown grid 'log'; choose from time, half_log_snr"),
    "flag": (["--sovler", "pc"], "--sovler"),
    "command line number": (["--lr", "fast"], "invalid float value: 'fast'"),
    "negative steps": (["--steps", "-3"], "sampling.steps"),
    "negative rate": (["--lr", "-1"], "lr must be positive"),
    "NaN rate": (["--lr", "nan"], "training.lr"),
    "NaN beta": (["--set", "sde.settings.beta_max=.nan"], "beta_max must be positive and finite, got nan"),
    "negative sigma": (["--sde", "ve", "--set", "sde.settings.sigma_min=-1"], "sigma_min must be positive"),
    "sigma order": (["--sde", "ve", "--set", "sde.settings.sigma_min=60"], "sigma_min must be below sigma_max"),
    "beta order": (["--set", "sde.settings.beta_min=30"], "beta_min must not exceed beta_max"),
    "sde setting": (["--set", "sde.settings.sigma_max=3"], "SDE 'vp' has no setting sigma_max; it takes beta_min, beta_max"),
    "solver option": (["--set", "sampling.options.snrr=3"], "solver 'pc' has no setting snrr; it takes predictor, snr, corrections"),
    "network option": (["--network", "mlp", "--set", "model.options.wide=3"], "wide"),
    "prediction": (["--set", "model.prediction=x0"], "unknown prediction 'x0'"),
    "prediction of a chain": (["--set", "model.prediction=posterior_mean"], "needs an SDE that is a chain"),
    "objective": (["--objective", "l2"], "unknown objective 'l2'; choose from dsm, simple, vlb, hybrid"),
    "index sampler": (["--set", "training.indices=log"], "unknown index sampler 'log'; choose from uniform, importance"),
    "length of a chain": (["--objective", "simple", "--chain-steps", "1"], "chain_steps must be a whole number of at least 2"),
    "two lengths of a chain": (["--sde", "ddpm", "--objective", "vlb", "--chain-steps", "9"], "a chain of 1000 steps, got 9"),
    "betas": (["--sde", "ddpm", "--set", "sde.settings.betas=cos"], "unknown betas 'cos'; choose from linear, quadratic, cosine"),
    "hybrid without a variance": (["--objective", "hybrid"], "needs a model with variance 'learned_range'"),
    "variance without its loss": (["--learned-variance", "--objective", "simple"], "does not train the learned variance"),
    "variance that is not there": (["--solver", "ancestral", "--set", "sampling.options.variance=learned"], "--learned-variance"),
    "variance": (["--set", "model.variance=learned"], "unknown variance 'learned'"),
    "set": (["--set", "lr"], "--set takes KEY=VALUE"),
    "key": (["--set", "training.rate=3"], "unknown key training.rate"),
    "config file": (["--config", "none.yaml"], "cannot read the configuration none.yaml"),
    "time": (["--checkpoint-every", "often"], "a time must look like 30s"),
    "device": (["--device", "tpu9000"], "device"),
    "missing files": (["--data", "mnist"], "mnist"),
    "missing directory": (["--data", "mnist", "--data-root", "nowhere"], "nowhere"),
    "one item": (["--set", "data.limit=1"], "data.limit"),
    "labels of data without any": (["--data", "checkerboard", "--labels"], "no labels"),
    "size of data without files": (["--image-size", "8"], "data 'digits' takes no size: for the user's own files"),
    "root of data without files": (["--data-root", "mine"], "data.root is for mnist, fashion_mnist, cifar10"),
    "key of data": (["--set", "data.path=x"], "unknown key data.path; choose from name, root, limit"),
    "section as a word": (["--set", "sde=ve"], "sde: Input should be a valid dictionary or instance of SDEConfig, got 've'"),
    "beta as a word": (["--set", "sde.settings.beta_max=big"], "beta_max must be a number, got 'big'"),
    "flag of beta": (["--beta-max", "big"], "--beta-max: a number or auto is needed, got 'big'"),
    "auto of another SDE": (
        ["--sigma-max", "auto"],
        "sde.settings.sigma_max of SDE 'vp' cannot be auto; of its settings these can: beta_min",
    ),
    "auto of a chain": (["--sde", "ddpm", "--beta-max", "auto"], "cannot be auto; of its settings these can: none"),
    "lambda order": (["--sde", "cosine", "--set", "sde.settings.lambda_min=9"], "below lambda_max = 6.0, got 9"),
    "normaliser": (["--set", "model.normalizer=minmax"], "normalisation 'minmax' is unknown; allowed: standard, range, robust, identity"),
    "prior": (["--set", "model.prior=gauss"], "unknown prior 'gauss'; choose from sde, matched"),
    "width": (["--set", "model.options.width=0"], "width must be an integer of at least 2, got 0"),
    "heads": (["--set", "model.options.heads=7"], "heads must divide the channels of the levels with attention ([32, 64]), got 7"),
    "levels with attention": (["--set", "model.options.attention=[7]"], "attention must name levels in 0..1, got [7]"),
    "dropout": (["--set", "model.options.dropout=1.5"], "dropout must be a number in [0, 1), got 1.5"),
    "weighting": (["--set", "training.weighting=snr"], "unknown weighting 'snr'; choose from simple, likelihood, edm, min_snr"),
    "times": (["--set", "training.times=log"], "unknown time sampler 'log'; choose from uniform, stratified"),
    "parts of a batch": (["--accumulate", "5"], "batch must be a multiple of accumulate, got 64 and 5"),
    "parts twice": (["--accumulate", "2", "--micro-batch", "4"], "give accumulate or micro_batch, not both, got 2 and 4"),
    "averaging": (["--set", "training.ema_width=2"], "ema_width must be above 0 and below 0.28, got 2"),
    "half a step": (["--steps", "2.5"], "argument --steps: invalid int value: '2.5'"),
    "few samples": (["--samples", "5"], "sampling.samples: Input should be greater than or equal to 16, got 5"),
    "seed": (["--seed", "-1"], "seed: Input should be greater than or equal to 0, got -1"),
    "value of a solver's option": (["--set", "sampling.options.snr=-1"], "snr must be positive and finite, got -1"),
    "no time": (["--checkpoint-every", "0s"], "a time must look like 30s, 5m or 1h and be positive, got '0s'"),
    "directory as a configuration": (["--config", "."], "cannot read the configuration ."),
    "word too many": (["extra"], "unrecognized arguments: extra"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_one_line_and_exit_code_2_before_any_work(fault: str, command: Command, tmp_path: Path) -> None:
    arguments, message = BAD[fault]
    code, out, err = command(*arguments)
    assert code == 2
    assert len(err) == 1 and message in err[0], err
    assert out == [] and list(tmp_path.iterdir()) == []


BAD_OF_OTHERS: dict[str, tuple[list[str], str]] = {
    "no command": ([], "the following arguments are required: COMMAND"),
    "unknown command": (["train"], "invalid choice: 'train' (choose from 'run', 'sample', 'likelihood'"),
    "images": (["likelihood", "--images", "0"], "images must be a whole number of at least 1, got 0"),
    "draws": (["likelihood", "--draws", "x"], "argument --draws: invalid int value: 'x'"),
    "dequantization": (
        ["likelihood", "--dequantization", "gauss"],
        "unknown dequantization 'gauss'; choose from uniform, truncated_normal",
    ),
    "divergence": (["likelihood", "--divergence", "trace"], "unknown divergence 'trace'; choose from exact, hutchinson"),
    "tolerance": (["likelihood", "--tolerance", "-1"], "tolerance must be positive and finite, got -1.0"),
    "run of likelihood": (["likelihood", "--run", "none"], "none is not a run directory: it has no config.yaml"),
    "solvers": (["compare", "--solvers", "rk45"], "unknown solver 'rk45'; choose from em, pc"),
    "solver twice": (["compare", "--solvers", "ddim,ddim"], "solvers must be different names, got 'ddim,ddim'"),
    "calls as a word": (["compare", "--calls", "few"], "--calls takes whole numbers separated by commas, got 'few'"),
    "one call": (["compare", "--calls", "1"], "calls must be whole numbers of at least 2, got '1'"),
    "samples of compare": (["compare", "--samples", "5"], "samples must be a whole number of at least 20, got 5"),
    "seed of compare": (["compare", "--seed", "-1"], "seed must be in [0, 2^63), got -1"),
    "run of compare": (["compare", "--run", "none"], "none is not a run directory"),
    "run of doctor": (["doctor", "--run", "none"], "none is not a run directory"),
    "run of average": (["average", "--run", "none", "--ema-width", "0.1"], "none is not a run directory"),
    "width of average": (["average", "--run", "none"], "the following arguments are required: --ema-width"),
    "device of doctor": (["doctor", "--device", "tpu"], "unknown device 'tpu'; try cpu, cuda or cuda:0"),
}


@pytest.mark.parametrize("fault", BAD_OF_OTHERS)
def test_bad_input_of_the_other_commands(fault: str, sde_gen_command: Command, tmp_path: Path) -> None:
    arguments, message = BAD_OF_OTHERS[fault]
    code, out, err = sde_gen_command(*arguments)
    assert (code, out, len(err)) == (2, [], 1) and message in err[0], err
    assert list(tmp_path.iterdir()) == []


def test_out_below_a_file_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    code, _, err = command("--out", "file/run")
    assert code == 2 and len(err) == 1 and "not a directory" in err[0]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_checkpoint_is_one_line(command: Command, tmp_path: Path) -> None:
    arguments = [*QUICK, "--data", "gaussians8", *FEW, "--solver", "em", "--steps", "3", "--out", "here"]
    assert command(*arguments)[0] == 0
    (weights,) = (tmp_path / "here" / "checkpoint").glob("*/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    code, _, err = command(*arguments)
    assert code == 2 and len(err) == 1 and "here/checkpoint" in err[0] and "--retrain" in err[0]
    assert command(*arguments, "--retrain")[0] == 0


def test_help_names_every_choice(command: Command) -> None:
    code, out, _ = command("--help")
    text = "\n".join(out)
    assert code == 0
    for word in (*SDES, *SOLVERS, "digits", "mnist", "--dry-run", "--checkpoint-every", "examples:"):
        assert word in text, word
