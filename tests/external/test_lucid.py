"""Checkpoints of denoising-diffusion-pytorch: in its layout, and beside the library itself where it is installed."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import lucid_file, lucid_state, moved, randomised
from peers import peer
from torch.utils.flop_counter import FlopCounterMode

import sde_gen
from sde_gen.errors import CheckpointError
from sde_gen.external import load_external
from sde_gen.external.lucid import _sigmoid_betas
from sde_gen.networks import make_network

SMALL = {"width": 8, "multipliers": (1, 2), "attention": (1,), "heads": 2, "head_channels": 4, "clock_scale": 1.0, "clock_shift": 0.0}
SCHEDULES = {
    "linear": torch.linspace(0.1 / 50, 20.0 / 50, 50, dtype=torch.float64),
    "cosine": sde_gen.sdes.BETAS["cosine"](50),
    "sigmoid": _sigmoid_betas(50),
    "betas": torch.linspace(0.01, 0.3, 50, dtype=torch.float64),
}
GIVEN = {"size": 8, "auto_normalize": True}


def snr_of(betas: torch.Tensor) -> torch.Tensor:
    abar = torch.cumprod(1 - betas, 0)
    return abar / (1 - abar)


def weights_of(betas: torch.Tensor, objective: str, most: float = float("inf")) -> torch.Tensor:
    snr = snr_of(betas)
    return snr.clamp_max(most) / {"pred_noise": snr, "pred_x0": torch.ones_like(snr), "pred_v": snr + 1}[objective]


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return set(mine) == set(theirs) and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(
    ("schedule", "objective", "prediction"),
    [("linear", "pred_noise", "noise"), ("cosine", "pred_x0", "data"), ("sigmoid", "pred_v", "v"), ("betas", "pred_v", "v")],
)
def test_what_the_file_says(schedule: str, objective: str, prediction: str, tmp_path: Path) -> None:
    """Weights, averaged or raw; the process from the model's buffers, whatever the average holds; the objective from the loss's weights."""
    raw, betas = randomised("lucid", 8, **SMALL), SCHEDULES[schedule]
    average = moved(raw)
    for most, weights in ((float("inf"), "ema"), (5.0, "raw")):
        path = lucid_file(tmp_path / "model-1.pt", raw, average, betas, weights_of(betas, objective, most))
        model = load_external(path, config=GIVEN, weights=weights)
        assert same(model.network, average if weights == "ema" else raw)
        assert model.network.options == raw.options and model.prediction == prediction and model.clock == "index"
        torch.testing.assert_close(model.sde.points.alpha, torch.cumprod(1 - betas, 0).sqrt(), rtol=1e-6, atol=1e-9)
        told = {name: fact["value"] for name, fact in model.source["facts"].items()}
        assert told["schedule"] == schedule and told["objective"] == objective and told["steps"] == 50 and not told["self_condition"]
        assert model.source["format"] == "lucid" and model.source["average"] == weights
    if schedule != "linear":
        return
    for key, wrong in (("schedule", "other"), ("steps", 60), ("objective", "pred_xyz"), ("heads", 4), ("multipliers", [1, 3])):
        with pytest.raises(ValueError, match=f"config says {key}"):
            load_external(path, config=GIVEN | {key: wrong})


def test_what_it_does_not_say_is_asked_for(tmp_path: Path) -> None:
    network = randomised("lucid", 8, **SMALL)
    betas = SCHEDULES["linear"]
    path = lucid_file(tmp_path / "a.pt", network, network, betas, weights_of(betas, "pred_v"))
    with pytest.raises(ValueError, match=r"does not say size \(.*auto_normalize \("):
        load_external(path)
    torch.save(lucid_state(network), tmp_path / "b.pt")  # a Unet alone
    with pytest.raises(ValueError, match=r"size.*auto_normalize.*objective \(.*schedule \(.*steps \("):
        load_external(tmp_path / "b.pt")
    model = load_external(tmp_path / "b.pt", config={"preset": "defaults", "size": 8})
    assert model.prediction == "v" and model.source["average"] == "only"
    arguments = {"image_size": 8, "timesteps": 50, "beta_schedule": "linear", "objective": "pred_x0", "auto_normalize": False}
    model = load_external(tmp_path / "b.pt", config=arguments | {"dim": 8, "dim_mults": (1, 2), "sampling_timesteps": 20})
    ends = model.normalizer.encode(torch.tensor([0.0, 255.0])[:, None, None, None].expand(2, 3, 1, 1))
    torch.testing.assert_close(ends.unique(), torch.tensor([0.0, 1.0]))  # auto_normalize = False
    assert (
        load_external(tmp_path / "b.pt", config=arguments | {"auto_normalize": True}).normalizer.encode(torch.zeros(1, 3, 1, 1)).min() == -1
    )


def test_what_it_cannot_be(tmp_path: Path) -> None:
    network = randomised("lucid", 8, **SMALL)
    state, path = lucid_state(network), tmp_path / "a.pt"
    given = GIVEN | {"objective": "pred_v", "schedule": "linear", "steps": 50}
    for change, message in (
        ({"time_mlp.0.weights": torch.zeros(8)}, "another version or kind"),
        ({"more": torch.zeros(8)}, "1 tensors that this network has not, as 'more'"),
        ({"init_conv.weight": torch.zeros(9, 3, 7, 7)}, "no multiples of the 8"),
        ({"mid_attn.mem_kv": torch.zeros(2, 4, 4, 4)}, "several numbers of heads"),
        ({"final_conv.weight": torch.zeros(5, 8, 1, 1)}, "5 outputs for 3 inputs"),
        ({"mid_block1.mlp.1.weight": torch.zeros(3, 32)}, r"modulation.weight should be \(32, 32\), the file has \(3, 32\)"),
        ({"mid_block1.mlp.1.weight": None}, "the file lacks 'mid_block1.mlp.1.weight'"),
    ):
        torch.save({key: value for key, value in (state | change).items() if value is not None}, path)
        with pytest.raises(CheckpointError, match=message):
            load_external(path, config=given)
    torch.save({"model": {f"model.{key}": value for key, value in state.items()}, "step": 1}, path)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_external(path, config=given)


def test_self_conditioning_is_asked_with_nothing(tmp_path: Path) -> None:
    network, known = randomised("lucid", 8, **SMALL), torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    state = lucid_state(network)
    state["init_conv.weight"] = torch.cat([known, state["init_conv.weight"]], dim=1)
    torch.save(state, tmp_path / "a.pt")
    model = load_external(tmp_path / "a.pt", config=GIVEN | {"objective": "pred_v", "schedule": "linear", "steps": 50})
    assert same(model.network, network) and model.source["facts"]["self_condition"]["value"] is True


def test_operations_are_counted() -> None:
    with torch.device("meta"):
        network = make_network("lucid", (3, 20, 12), **SMALL).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 20, 12), torch.zeros(1))
    assert network.flops() == pytest.approx(counter.get_total_flops(), rel=0.01) and network.tokens() == 60


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"dim": 16, "dim_mults": (1, 2, 4), "attn_heads": 2, "attn_dim_head": 8}, {}),
        ({"dim": 128, "dim_mults": (1, 2)}, {"objective": "pred_noise", "beta_schedule": "cosine", "min_snr_loss_weight": True}),
        ({"dim": 16, "dim_mults": (1, 2), "full_attn": (True, False), "self_condition": True, "channels": 1}, {"beta_schedule": "linear"}),
    ],
)
def test_beside_the_library(options: dict[str, Any], more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own classes, on random weights: outputs to 1e-5, and what it predicts of x_0 at each of its steps."""
    if importlib.util.find_spec("accelerate") is None:  # its Trainer's, which is not used
        monkeypatch.setitem(sys.modules, "accelerate", types.SimpleNamespace(Accelerator=object))
    library = peer("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    torch.manual_seed(0)
    unet = library.Unet(**options)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    diffusion = library.GaussianDiffusion(unet, image_size=8, timesteps=50, **more).eval()
    ema = {f"ema_model.{key}": value for key, value in diffusion.state_dict().items()}
    torch.save({"step": 1, "model": diffusion.state_dict(), "ema": ema, "opt": {}, "scaler": None, "version": "1"}, tmp_path / "m.pt")
    model = load_external(tmp_path / "m.pt", config=GIVEN)
    x, t = torch.randn(3, unet.channels, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 20, 48])
    with torch.no_grad():
        wanted = diffusion.model_predictions(x, t)
        output = unet(x, t)
    far = (model.network(x, t.float()) - output).norm() / output.norm()
    assert float(far) < 1e-5
    found = model.denoise(x.double(), model.sde.points.times[t])
    torch.testing.assert_close(found.float(), wanted.pred_x_start, rtol=1e-3, atol=1e-3)
    assert model.source["facts"]["objective"]["value"] == diffusion.objective
    assert model.source["facts"]["schedule"]["value"] == more.get("beta_schedule", "sigmoid")
