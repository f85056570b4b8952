"""Our networks with other libraries' weights give what the libraries' own classes gave: golden inputs and outputs of small ones."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sde_gen
from sde_gen.external import load_external

GOLDEN = Path(os.environ.get("SDE_GEN_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
SCORE_SDE = ("ncsnpp-ve-cifar10", "ncsnpp-ve-256", "ddpmpp-vp-continuous", "ncsnpp-ve-discrete", "ddpm-vp")
EDM = ("ncsnpp-edm", "ddpmpp-edm", "adm-edm", "ddpmpp-vp", "ncsnpp-ve")
ADM = ("adm-learned-sigma-legacy-order", "adm-new-order", "improved-diffusion-like")
CLOSE = 1e-5

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden networks of other libraries are not at {GOLDEN}")


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def io(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.io.safetensors")


def configs(library: str) -> Any:
    return json.loads((GOLDEN / f"{library}.json").read_text())


def of_score_sde(name: str, weights: str) -> sde_gen.ScoreModel:
    config = configs("score_sde")[f"score_sde-{name}"]["config"]
    process, continuous = ("vesde" if "ve" in name else "vpsde"), "discrete" not in name
    return load_external(
        GOLDEN / f"score_sde-{name}.pth", config=config | {"training": {"sde": process, "continuous": continuous}}, weights=weights
    )


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("name", SCORE_SDE)
def test_score_sde(name: str, weights: str) -> None:
    model, given = of_score_sde(name, weights), io(f"score_sde-{name}")
    x, labels, wanted = given["x"], given["labels"].double(), given[f"output_{weights}"].double()
    network = model.network
    scale, shift = network.options["clock_scale"], network.options["clock_shift"]
    if "ve" in name:  # whose data are 0 .. 1 and become -1 .. 1, and whose output is divided by sigma
        x = 2 * x - 1
        sigma = 2 * (labels if "discrete" not in name else 50.0 * (0.01 / 50.0) ** (labels / 999))
        wanted = wanted * (sigma / 2)[:, None, None, None]
        told = labels if "discrete" in name else torch.log(labels)
        c = (told - shift) / scale
        t = model.sde.time_of(-torch.log(sigma))
        noise = -wanted
    else:
        c, t, noise = (labels - shift) / scale, labels / 999, wanted
    with torch.no_grad():
        assert far(network(x, c.float()), wanted) < CLOSE
        # the whole model: its own clock, from the time
        assert far(model.noise(x.double(), t), noise) < CLOSE


def one_hot_labels(given: dict[str, torch.Tensor]) -> torch.Tensor:
    return given["class_one_hot"].argmax(1)


@pytest.mark.parametrize("name", EDM)
def test_edm(name: str) -> None:
    given = io(f"edm-{name}")
    config = {key: value for key, value in configs("edm")[f"edm-{name}"].items() if key in ("class_name", "init_kwargs")}
    model = load_external(GOLDEN / f"edm-{name}.safetensors", config=config)
    x, sigma = given["x"], given["sigma"].double()
    t = model.sde.time_of(-torch.log(sigma))
    alpha, _ = model.sde.marginal(t)
    state = x.double() * alpha[:, None, None, None]
    labels = one_hot_labels(given) if model.network.classes else None
    told = given["sigma"]
    for key, cond in (("denoised", {} if labels is None else {"label": labels}), ("denoised_null", {})):
        wanted = (x - given[key]) / sigma[:, None, None, None]
        if name == "ddpmpp-vp":  # EDM works out this clock in float32, from a difference; 3e-7 of it are lost
            c = ((0.1**2 + 2 * 19.9 * (1 + told**2).log()).sqrt() - 0.1) / 19.9
            with torch.no_grad():
                noise = model.network(x / (1 + told**2).sqrt()[:, None, None, None], c, **cond)
            assert float((c - t).abs().max()) < 1e-6 and far(noise, wanted) < CLOSE
            continue
        with torch.no_grad():
            found = (x - model.denoise(state, t, **cond)) / sigma[:, None, None, None]
        assert far(found, wanted) < CLOSE, key
        if labels is not None and key == "denoised":
            assert far(found, (x - given["denoised_null"]) / sigma[:, None, None, None]) > 100 * CLOSE


@pytest.mark.parametrize("name", ADM)
def test_adm(name: str) -> None:
    given = io(name)
    flags = configs("adm")[name]
    facts = {"noise_schedule": "linear", "diffusion_steps": 1000, "predict_xstart": False, "rescale_timesteps": False}
    model = load_external(GOLDEN / f"{name}.pt", config=flags | facts)
    cond = {"label": given["labels"]} if "labels" in given else {}
    with torch.no_grad():
        assert far(model.network(given["x"], given["timesteps"], **cond), given["output"]) < CLOSE
        wrong = load_external(
            GOLDEN / f"{name}.pt", config=flags | facts | {"use_new_attention_order": not flags["use_new_attention_order"]}
        )
        if flags.get("num_heads") != 1:
            assert far(wrong.network(given["x"], given["timesteps"], **cond), given["output"]) > 100 * CLOSE
