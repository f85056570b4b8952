"""Other libraries' checkpoints through the command line, in their own layouts: from a file to samples and bits/dim in three commands."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from foreign_checkpoints import adm_state, edm_pickle, lucid_file, moved, randomised, score_sde_file
from toys import Command

import sde_gen
from sde_gen.commands import likelihood
from sde_gen.commands.external import with_moments
from sde_gen.data import rows_drawn
from sde_gen.networks import make_network
from sde_gen.training import read_extra

RNG = np.random.default_rng(0)
NESTED = {
    "data": {"image_size": 8, "centered": True, "num_channels": 3},
    "training": {"sde": "vpsde", "continuous": True},
    "model": {"beta_min": 0.1, "beta_max": 20.0, "fir": False, "skip_rescale": True, "nf": 8, "ch_mult": [1, 2], "nonlinearity": "swish"},
}


def pictures(path: Path, labels: bool = False) -> str:
    x = RNG.integers(256, size=(40, 3, 8, 8), dtype=np.uint8)
    np.savez(path / "pictures.npz", x=x, **({"y": np.arange(40) % 3} if labels else {}))
    return "pictures.npz"


def of_score_sde(path: Path) -> list[str]:
    network = randomised("song", size=8, width=8, multipliers=(1, 2), clock_scale=999.0, clock_shift=0.0)
    score_sde_file(path / "checkpoint_8.pth", network, moved(network))
    (path / "facts.yaml").write_text(yaml.safe_dump(NESTED))
    return ["checkpoint_8.pth", "--facts", "facts.yaml", "--data", pictures(path)]


def of_edm(path: Path) -> list[str]:
    edm_pickle(path / "snapshot.pkl", randomised("song", size=8, width=8, multipliers=(1,), attention=(0,), classes=3))
    return ["snapshot.pkl", "--data", pictures(path, labels=True)]


def of_adm(path: Path) -> list[str]:
    network = randomised("adm", size=8, width=8, multipliers=(1,), attention=(0,), out=6, classes=3, group=1, null=False)
    torch.save(adm_state(network, "legacy"), path / "model.pt")
    flags = {"noise_schedule": "linear", "diffusion_steps": 1000, "predict_xstart": False, "rescale_timesteps": False, "image_size": 8}
    (path / "flags.yaml").write_text(yaml.safe_dump(flags | {"num_heads": 1, "use_new_attention_order": False}))
    return ["model.pt", "--facts", "flags.yaml", "--data", pictures(path, labels=True)]


def of_diffusers(path: Path) -> list[str]:
    network = make_network("unet2d", (3, 8, 8), width=8, multipliers=(1,), attention=(), groups=4, clock_scale=1.0, clock_shift=0.0)
    normalizer = sde_gen.Normalizer(torch.full((3, 1, 1), 127.5), torch.full((3, 1, 1), 127.5), "range")
    model = sde_gen.ScoreModel(network, sde_gen.make_sde("ddpm"), "noise", "index", normalizer=normalizer)
    sde_gen.to_diffusers(model, path / "ddpm-digits")
    return ["ddpm-digits", "--data", pictures(path)]


def of_lucid(path: Path) -> list[str]:
    network = randomised("lucid", size=8, width=8, multipliers=(1, 2), attention=(1,), heads=1, head_channels=8)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    lucid_file(path / "model-3.pt", network, moved(network), betas, torch.ones(1000, dtype=torch.float64))
    return ["model-3.pt", "--set", "size=8", "--set", "auto_normalize=true", "--data", pictures(path)]


LIBRARIES = pytest.mark.parametrize("make", [of_score_sde, of_edm, of_adm, of_diffusers, of_lucid])


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a run is another test's."""
    monkeypatch.setattr("sde_gen.commands.cli._report", lambda directory: None)


def bits_of_the_file(arguments: list[str]) -> sde_gen.BitsPerDim:
    """Bits per dimension of the same held-out pictures, by the functions, on the network in the file."""
    data, cond = sde_gen.load_dataset(arguments[-1]), {}
    facts: dict[str, Any] = {}
    if "--facts" in arguments:
        facts = yaml.safe_load(Path(arguments[arguments.index("--facts") + 1]).read_text())
    for flag, text in pairwise(arguments):
        if flag == "--set":
            facts[text.partition("=")[0]] = yaml.safe_load(text.partition("=")[2])
    model = with_moments(sde_gen.load_external(arguments[0], config=facts or None), data)
    assert data.test is not None and tuple(data.value_range or ()) == (0, 255)
    rows = rows_drawn(len(data.test), 2, likelihood.SEED_OF_ORDER)
    if model.network.classes is not None:
        assert data.test_labels is not None
        cond = {"label": data.test_labels[rows]}
    options: dict[str, Any] = {"divergence": "hutchinson", "probes": 1, "seed": 0, "rtol": 0.5, "atol": 0.5, "batch_size": 256}
    return sde_gen.bits_per_dim(model, data.test[rows].long(), 256, "truncated_normal", together=True, cond=cond, **options)


@LIBRARIES
def test_three_commands(
    make: Callable[[Path], list[str]], sde_gen_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = make(tmp_path)
    code, out, err = sde_gen_command("import", *arguments, "--out", "run")
    assert (code, err) == (0, [])
    assert any(line.startswith("licence ") for line in out) and any("SHA-256" in line for line in out)
    source = read_extra(tmp_path / "run" / "checkpoint")["source"]
    assert source["file"] in (arguments[0], "unet/diffusion_pytorch_model.safetensors")
    assert len(source["sha256"]) == 64 and str(tmp_path) not in json.dumps(source)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["normalizer"] == "range"
    code, out, err = sde_gen_command("sample", "--run", "run", "--samples", "4", "--steps", "2", "--out", "new.npz", "--no-progress")
    assert (code, err) == (0, [])
    assert np.load(tmp_path / "new.npz")["x"].shape == (4, 3, 8, 8)
    monkeypatch.setattr(likelihood, "CHAINS", {4: 2})  # the chain's terms by the dozen are seconds for each library
    monkeypatch.setattr(likelihood, "CONTINUOUS_TERMS", 4)
    monkeypatch.setattr(likelihood, "CLASSIFIED", 0)
    flags = ["--images", "2", "--tolerance", "0.5", "--probes", "1", "--divergence", "hutchinson"]
    code, out, err = sde_gen_command("likelihood", "--run", "run", *flags)
    assert (code, err) == (0, []) and any(re.match(r"held-out +\S+ \+- \S+ bits/dim", line) for line in out)
    saved = json.loads((tmp_path / "run" / "likelihood" / "likelihood.json").read_text())
    found = bits_of_the_file(arguments)
    assert saved["parts"]["held-out"]["each"] == pytest.approx(found.each.tolist(), rel=1e-5)
    chains = [name for name in saved["parts"] if name.startswith("held-out, chain of 4 steps")]
    assert len(chains) == (3 if make is of_adm else 1)  # whose variance is learned


def test_the_other_commands_take_it(sde_gen_command: Command, tmp_path: Path) -> None:
    assert sde_gen_command("import", *of_edm(tmp_path), "--out", "run")[0] == 0
    code, out, err = sde_gen_command("doctor", "--run", "run", "--samples", "0")
    assert code in (0, 1) and err == []
    flags = ["--solver", "ddim", "--steps", "2", "--samples", "16", "--no-progress"]
    code, out, err = sde_gen_command("run", "--config", "run/config.yaml", "--out", "run", *flags)
    assert (code, err) == (0, []) and any(line.startswith("reusing") for line in out)
    code, out, err = sde_gen_command("check", "--run", "run")
    assert code == 1 and err == [] and "no single other fact brings it below 1" in out[-1]  # of random weights
    assert json.loads((tmp_path / "run" / "check.json").read_text())["right"] is False


def test_a_check_of_a_file(sde_gen_command: Command, tmp_path: Path) -> None:
    code, out, err = sde_gen_command("check", *of_score_sde(tmp_path), "--images", "4", "--all")
    assert code == 1 and err == []
    assert any("average: raw weights" in line for line in out) and any("clock: log sigma" in line for line in out)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "nonsense"], "--set takes FACT=VALUE"),
        (["--set", "colour=1"], "'colour', which this format does not know"),
        (["--preset", "vp/cifar10_ddpmpp_continuous"], "but the file"),
        (["--preset", "vp/nothing"], "no preset 'vp/nothing'; known: ve/cifar10_ncsnpp"),
        (["--format", "edm"], "holds no network of edm"),
        (["--weights", "best"], "unknown weights 'best'"),
        (["--range", "1", "0"], "value_range"),
    ],
)
def test_bad_input_is_one_line(more: list[str], message: str, sde_gen_command: Command, tmp_path: Path) -> None:
    arguments = of_score_sde(tmp_path)
    code, _, err = sde_gen_command("import", *arguments, *more, "--out", "run")
    assert code == 2 and len(err) == 1 and not (tmp_path / "run").exists()
    assert re.search(message, err[0]), err[0]


def test_what_does_not_fit_the_data(sde_gen_command: Command, tmp_path: Path) -> None:
    arguments = of_edm(tmp_path)
    np.save(tmp_path / "other.npy", RNG.integers(256, size=(60, 3, 6, 6), dtype=np.uint8))
    np.save(tmp_path / "plain.npy", RNG.integers(256, size=(40, 3, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "floats.npy", RNG.normal(size=(40, 3, 8, 8)))
    for data, message in (
        ("other.npy", r"for pictures of \(3, 8, 8\), other.npy has \(3, 6, 6\)"),
        ("plain.npy", "knows 3 classes, plain.npy has no labels"),
        ("floats.npy", "give --range LOW HIGH"),
        ("nothing.npy", "no such file"),
    ):
        code, _, err = sde_gen_command("import", arguments[0], "--data", data, "--out", "run")
        assert code == 2 and len(err) == 1
        assert re.search(message, err[0]), err[0]
    code, _, err = sde_gen_command("import", arguments[0], "--out", "run")
    assert code == 2 and "give --data" in err[0]
    code, _, err = sde_gen_command("check")
    assert code == 2 and "give a FILE, or --run DIR" in err[0]
    assert sde_gen_command("import", *arguments, "--out", "run")[0] == 0
    code, _, err = sde_gen_command("import", *arguments, "--out", "run")
    assert code == 2 and "is there already" in err[0]
    model = sde_gen.load(tmp_path / "run")
    assert model.moments is not None and model.network.classes == 3
