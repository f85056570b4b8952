"""What was imported is a model like ours: saved, scored, trained, guided and sampled by every solver and other libraries' samplers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import adm_state, edm_pickle, lucid_file, moved, randomised, score_sde_file
from peers import peer

import sde_gen
from sde_gen.external import as_azula, as_kdiffusion, load_external, to_diffusers
from sde_gen.networks import make_network
from sde_gen.solvers import SOLVERS

VP = {"sde": "vp", "continuous": True, "centered": True, "beta_min": 0.1, "beta_max": 20.0, "size": 8, "skip_rescale": True, "fir": False}
VE = {"sde": "ve", "continuous": True, "centered": False, "scale_by_sigma": True, "size": 8, "skip_rescale": True, "fir": True}
ADM = {"size": 8, "schedule": "linear", "steps": 1000, "prediction": "noise", "rescale_timesteps": False}
FOURIER = {"embedding": "fourier", "noise_multiplier": 2, "encoder": "residual", "kernel": (1, 3, 3, 1)}
FAMILIES = ("ncsnpp", "ddpmpp", "ddpm", "adm", "edm", "lucid", "diffusers")


def family(kind: str, folder: Path) -> Any:
    """A small network of random weights, written in its library's layout and loaded: weights frozen, in evaluation mode."""
    small = {"size": 8, "width": 8, "multipliers": (1, 2), "attention": (1,)}
    index = {"clock_scale": 1.0, "clock_shift": 0.0}
    if kind == "adm":
        network = randomised("adm", classes=3, out=6, group=1, null=False, **small)
        torch.save(adm_state(network, "legacy"), folder / "a.pt")
        return load_external(folder / "a.pt", config=ADM | {"attention_order": "legacy", "heads": 1})
    if kind == "edm":
        return load_external(edm_pickle(folder / "e.pkl", randomised("song", classes=3, **small)))
    if kind == "lucid":
        network = randomised("lucid", heads=1, head_channels=8, **small)
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        path = lucid_file(folder / "l.pt", network, moved(network), betas, torch.ones(1000, dtype=torch.float64))
        return load_external(path, config={"size": 8, "auto_normalize": True})
    if kind == "diffusers":
        network = make_network("unet2d", (3, 8, 8), width=8, groups=4, **index)
        normalizer = sde_gen.Normalizer(torch.full((3, 1, 1), 127.5), torch.full((3, 1, 1), 127.5), "range")
        model = sde_gen.ScoreModel(network, sde_gen.make_sde("ddpm"), "noise", "index", normalizer=normalizer)
        return load_external(to_diffusers(model, folder / "pipeline"))
    clock = {"clock_scale": -1.0, "clock_shift": -math.log(2)} if kind == "ncsnpp" else {"clock_scale": 999.0, "clock_shift": 0.0}
    more = {"ncsnpp": FOURIER, "ddpm": {"resampling": "conv", "rescale": False, "group": 1}}.get(kind, {})
    network = randomised("song", **small, **clock, **more)
    facts = VE if kind == "ncsnpp" else {key: value for key, value in VP.items() if kind != "ddpm" or key not in ("skip_rescale", "fir")}
    return load_external(score_sde_file(folder / "s.pth", network, moved(network)), config=facts)


@pytest.fixture(params=FAMILIES)
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return family(request.param, tmp_path)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def condition(model: Any, count: int) -> dict[str, torch.Tensor]:
    return {} if model.network.classes is None else {"label": torch.arange(count) % model.network.classes}


def test_it_is_saved_and_loaded_to_the_bit(imported: Any, tmp_path: Path) -> None:
    again = sde_gen.load(sde_gen.save(imported, tmp_path / "checkpoint", extra={"source": imported.source}))
    assert same(again.network, imported.network) and repr(again.sde) == repr(imported.sde) and again.settings() == imported.settings()
    x = torch.randn(2, *imported.network.shape, generator=torch.Generator().manual_seed(0))
    cond = condition(imported, 2)
    assert torch.equal(again.denoise(x, 0.4, **cond), imported.denoise(x, 0.4, **cond))
    assert torch.equal(again.normalizer.decode(x), imported.normalizer.decode(x))


def test_every_solver_and_the_likelihood_run_with_frozen_weights(imported: Any) -> None:
    shape, cond = imported.network.shape, condition(imported, 2)
    assert not any(parameter.requires_grad for parameter in imported.parameters())
    tame(imported)
    for name in SOLVERS:
        more: dict[str, Any] = {"rtol": 1.0, "atol": 1.0} if name in ("ode", "adaptive_sde") else {"steps": 2}
        out = sde_gen.sample(imported, (2, *shape), solver=name, cond=cond, seed=0, progress=False, **more)
        assert out.x.shape == (2, *shape) and bool(torch.isfinite(out.x).all()), name
    images = torch.randint(256, (2, *shape), generator=torch.Generator().manual_seed(0)).float()
    found = sde_gen.log_likelihood(imported, images, cond=cond, steps=2, divergence="hutchinson")
    assert bool(torch.isfinite(found.log_prob).all())


def tame(model: Any) -> None:
    """Let a network of random weights say little, as a denoiser's flow is smooth."""
    last = [module for module in model.network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.mul_(0.02)
        last.bias.mul_(0.02)


@pytest.mark.parametrize("kind", ["edm", "ddpmpp"])
def test_samplers_of_other_libraries_agree(kind: str, tmp_path: Path) -> None:
    """k-diffusion's, azula's and our samplers solve the same flow of the same network: what they differ by falls with their steps."""
    sampling, azula = peer("k_diffusion.sampling"), peer("azula.sample")
    model = family(kind, tmp_path)
    tame(model)
    cond = condition(model, 2)
    denoiser, adapted = as_kdiffusion(model), as_azula(model)
    first, last = 0.9 * denoiser.sigma_max, 1.5 * denoiser.sigma_min
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = model.sde.time_of(-torch.log(torch.tensor([first, last], dtype=torch.float64)))
    alpha, sigma = model.sde.marginal(ends)
    ours = [
        sde_gen.sample(
            model, noise.shape, solver="heun", steps=steps, grid="half_log_snr", x_init=sigma[0] * noise, t_start=float(ends[0]),
            t_end=float(ends[1]), cond=cond, final="state", progress=False, dtype=torch.float64,
        ).x / alpha[1]
        for steps in (4, 8, 16)
    ]  # fmt: skip
    scale = float((ours[2] - first * noise).norm())
    levels = [torch.exp(torch.linspace(math.log(first), math.log(last), steps + 1, dtype=torch.float64)) for steps in (4, 8, 16)]
    theirs = [sampling.sample_heun(denoiser, first * noise, sigmas, extra_args=cond, disable=True) for sigmas in levels]
    of_ours, of_theirs = ([float((x - ours[2]).norm()) / scale for x in found] for found in (ours[:2], theirs))
    assert of_ours[1] < of_ours[0] and of_theirs[2] < 0.5 * of_theirs[0] and of_theirs[2] < 0.02, (of_ours, of_theirs)

    start = (ends[0] - model.sde.t_min) / (model.sde.t_max - model.sde.t_min)
    stop = (ends[1] - model.sde.t_min) / (model.sde.t_max - model.sde.t_min)
    differences = []
    for steps in (12, 36):
        sampler = azula.DDIMSampler(adapted, steps=steps, start=float(start), stop=float(stop), silent=True, dtype=torch.float64)
        differences.append(float((sampler(sigma[0] * noise, **cond) / alpha[1] - ours[2]).norm()) / scale)
    assert differences[1] < 0.6 * differences[0] and differences[1] < 0.1, differences


def test_it_is_trained_on(imported: Any) -> None:
    model = imported.requires_grad_(True).train()
    z = torch.randn(2, *model.network.shape, generator=torch.Generator().manual_seed(0))
    loss = sde_gen.dsm_loss(model, z, **condition(model, 2)).mean()
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_it_is_guided(tmp_path: Path) -> None:
    model = load_external(edm_pickle(tmp_path / "e.pkl", randomised("song", width=16, multipliers=(1, 1), classes=3, size=8)))
    x, label = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
    guided = sde_gen.guide(model, strength=2.0)
    null, told = model.denoise(x, 0.5), model.denoise(x, 0.5, label=label)
    torch.testing.assert_close(guided.denoise(x, 0.5, label=label), null + 2 * (told - null), rtol=1e-4, atol=1e-4)
