"""The deterministic samplers of k-diffusion, azula and diffusers behind one call, for benchmarks/solver_error.py.

    samplers(sigma_max)[name](denoiser, x, calls, sigma_min) -> the answer at sigma = 0, or None where `calls` are too few

`denoiser(x, sigma)` gives E[x_0 | x_0 + sigma z = x], x (B, C, *) is the state at sigma_max, in float64. Every method runs with
the most steps that `calls` network calls allow, on a Karras (rho 7) and an exponential grid down to sigma_min, and ends in each
of two ways: "raw", the state at sigma_min, and "zero", one more call that leads to sigma = 0: by the library's own last step
where it can take it, else by the denoised state (its Euler step). All steps are the libraries' code; what is done here is to hand
them their noise levels and to translate the state and the network's output into each one's parametrisation.

Left out: samplers that add noise and have no setting without it; k-diffusion's dpm_adaptive, whose calls follow from a tolerance
on the whole batch and cannot be set; diffusers' flow-matching schedulers, whose Euler step is DDIM's and whose Heun costs two calls.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]
Sampler = Callable[..., Tensor | None]

LIBRARIES = ("k-diffusion", "azula", "diffusers")
ENDS = ("raw", "zero")
KARRAS_RHO = 7.0


@dataclass(frozen=True)
class Method:
    """A library's method: `run(denoiser, x, sigmas)` leads x from sigmas[0] down to sigmas[-1].

    calls: network calls for each step; extra: calls beside those; least: the fewest steps it can take; to_zero: whether it
    steps from the last positive level to 0 itself, for one call; own_grid: whether it makes its own exponential grid.
    """

    run: Callable[[Denoiser, Tensor, Tensor], Tensor]
    calls: int = 1
    extra: int = 0
    least: int = 1
    to_zero: bool = False
    own_grid: bool = False


def karras(first: float, last: float, count: int) -> Tensor:
    """`count` levels from `first` to `last`, even in sigma^(1/rho) (Karras et al. 2022, arXiv:2206.00364)."""
    u = torch.linspace(0, 1, count, dtype=torch.float64)
    low, high = last ** (1 / KARRAS_RHO), first ** (1 / KARRAS_RHO)
    return (high + (low - high) * u) ** KARRAS_RHO


def exponential(first: float, last: float, count: int) -> Tensor:
    """`count` levels from `first` to `last`, even in log sigma."""
    return torch.exp(torch.linspace(math.log(first), math.log(last), count, dtype=torch.float64))


GRIDS = {"karras": karras, "exponential": exponential}


def versions() -> dict[str, str | None]:
    """The installed version of each library, None where there is none."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def samplers(sigma_max: float = 80.0) -> dict[str, Sampler]:
    """Every sampler of the libraries installed, by a name that says library, method, grid and end."""
    makers = {"k-diffusion": k_diffusion_methods, "azula": azula_methods, "diffusers": diffusers_methods}
    made: dict[str, Sampler] = {}
    for library in (name for name, found in versions().items() if found is not None):
        for name, method in makers[library]().items():
            for grid in ("exponential",) if method.own_grid else GRIDS:
                for end in ENDS:
                    made[f"{library} {name}, {grid}, {end}"] = partial(drive, method, GRIDS[grid], end, sigma_max)
    return made


def drive(
    method: Method,
    grid: Callable[[float, float, int], Tensor],
    end: str,
    sigma_max: float,
    denoiser: Denoiser,
    x: Tensor,
    calls: int,
    sigma_min: float,
) -> Tensor | None:
    """`method` on `grid` with as many steps as `calls` allow; None where they are too few for it."""
    steps = (calls - method.extra - (end == "zero")) // method.calls
    if steps < method.least:
        return None
    with in_float64():
        levels = grid(sigma_max, sigma_min, steps + 1)
        if end == "raw":
            return method.run(denoiser, x, levels)
        if method.to_zero:
            return method.run(denoiser, x, torch.cat((levels, levels.new_zeros(1))))
        return denoiser(method.run(denoiser, x, levels), sigma_min)


@contextmanager
def in_float64() -> Iterator[None]:
    """Tensors that a library makes without naming a dtype are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


class _Float64Torch(types.ModuleType):
    """torch, but its float32 is float64: some diffusers schedulers cast the state to float32 by name."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


# k-diffusion ----------------------------------------------------------------------------------------------------------


def k_diffusion_methods() -> dict[str, Method]:
    """alpha = 1 as here. Samplers named for SDEs and "ancestral" ones are run with eta = 0, where they are deterministic."""
    kd = _k_diffusion()

    def loop(function: Callable[..., Tensor], **options: Any) -> Callable[[Denoiser, Tensor, Tensor], Tensor]:
        return lambda denoiser, x, sigmas: function(lambda y, s: denoiser(y, float(s[0])), x, sigmas, disable=True, **options)

    still = {"eta": 0.0, "noise_sampler": lambda sigma, sigma_next: 0.0}

    def fast(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
        solver = kd.DPMSolver(lambda y, s: denoiser(y, float(s[0])))
        return solver.dpm_solver_fast(x, -sigmas[0].log(), -sigmas[-1].log(), len(sigmas) - 1)

    methods = {
        "Euler": Method(loop(kd.sample_euler), to_zero=True),
        "Heun": Method(loop(kd.sample_heun), calls=2, to_zero=True),
        "DPM2": Method(loop(kd.sample_dpm_2), calls=2, to_zero=True),
        "DPM++2S": Method(loop(kd.sample_dpmpp_2s_ancestral, **still), calls=2, to_zero=True),
        "DPM++SDE": Method(loop(kd.sample_dpmpp_sde, **still), calls=2, to_zero=True),
        "DPM++2M": Method(loop(kd.sample_dpmpp_2m), to_zero=True),
        "DPM++2M-SDE midpoint": Method(loop(kd.sample_dpmpp_2m_sde, **still, solver_type="midpoint"), to_zero=True),
        "DPM++2M-SDE heun": Method(loop(kd.sample_dpmpp_2m_sde, **still, solver_type="heun"), to_zero=True),
        "DPM++3M-SDE": Method(loop(kd.sample_dpmpp_3m_sde, **still), to_zero=True),
        "DPM-fast": Method(fast, own_grid=True, least=2),
    }
    for order in (2, 3, 4):
        methods[f"LMS-{order}"] = Method(loop(kd.sample_lms, order=order), to_zero=True)
    return methods


def _k_diffusion() -> types.ModuleType:
    # Its sampling.py alone: the package itself imports torchvision, CLIP and training code that samplers do not need.
    name = "k_diffusion.sampling"
    if name not in sys.modules:
        found = importlib.util.find_spec("k_diffusion")
        assert found is not None and found.submodule_search_locations is not None
        folder = Path(next(iter(found.submodule_search_locations)))
        parent, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
        parent.__path__ = [str(folder)]
        utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
        parent.utils = utils  # type: ignore[attr-defined]
        spec = importlib.util.spec_from_file_location(name, folder / "sampling.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules |= {"k_diffusion": parent, "k_diffusion.utils": utils, name: module}
        spec.loader.exec_module(module)
    return sys.modules[name]


# azula ----------------------------------------------------------------------------------------------------------------


def azula_methods() -> dict[str, Method]:
    """alpha = 1 as here, by a schedule that looks the noise levels up by azula's own even times."""
    from azula import sample as az
    from azula.denoise import DiracPosterior

    class Levels:
        def __init__(self, denoiser: Denoiser, sigmas: Tensor) -> None:
            self.denoiser, self.sigmas = denoiser, sigmas

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones_like(t), self.sigmas[torch.round((1 - t) * (len(self.sigmas) - 1)).long()]

        def __call__(self, x: Tensor, t: Tensor) -> DiracPosterior:
            return DiracPosterior(self.denoiser(x, float(self.schedule(t)[1])))

    def loop(sampler: Callable[..., Any], **options: Any) -> Callable[[Denoiser, Tensor, Tensor], Tensor]:
        return lambda denoiser, x, sigmas: sampler(Levels(denoiser, sigmas), steps=len(sigmas) - 1, silent=True, **options)(x)

    methods = {
        "DDIM": Method(loop(az.DDIMSampler), to_zero=True),
        "Euler": Method(loop(az.EulerSampler), to_zero=True),
        "Heun": Method(loop(az.HeunSampler), calls=2),
    }
    for order in (2, 3, 4):
        methods[f"zAB-{order}"] = Method(loop(az.zABSampler, order=order), to_zero=True)
        methods[f"vAB-{order}"] = Method(loop(az.vABSampler, order=order), to_zero=True)
        methods[f"zEAB-{order}"] = Method(loop(az.zEABSampler, order=order))
        methods[f"xEAB-{order}"] = Method(loop(az.xEABSampler, order=order))
        methods[f"REAB-{order}"] = Method(loop(az.REABSampler, order=order))
    return methods


# diffusers ------------------------------------------------------------------------------------------------------------


def diffusers_methods() -> dict[str, Method]:
    """Each scheduler gets its noise levels directly; its state is x/sqrt(1 + sigma^2), or x where that is its convention."""
    import diffusers

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    for name in ("dpmsolver_multistep", "euler_discrete"):
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        module.torch = _Float64Torch("torch")  # type: ignore[attr-defined]

    multistep, single = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
    methods = {
        "DDIM": Method(_ddim, to_zero=True),
        "PNDM (PLMS)": Method(partial(_pndm, skip_prk_steps=True), extra=1, least=3, to_zero=True),
        "PNDM (PRK)": Method(partial(_pndm, skip_prk_steps=False), extra=9, least=4, to_zero=True),
        "IPNDM": Method(_ipndm, to_zero=True),
        "Euler": Method(partial(_unscaled, diffusers.EulerDiscreteScheduler), to_zero=True),
        "Heun": Method(partial(_two_stages, diffusers.HeunDiscreteScheduler), calls=2, to_zero=True),
        "KDPM2": Method(partial(_two_stages, diffusers.KDPM2DiscreteScheduler), calls=2, to_zero=True),
    }
    for order in (2, 3, 4):
        methods[f"LMS-{order}"] = Method(partial(_unscaled, diffusers.LMSDiscreteScheduler, order=order), to_zero=True)
    for lower in (True, False):  # lower_order_final: lower orders in the last steps of a run of fewer than 15
        tail = "" if lower else ", full order to the end"
        common = {"lower_order_final": lower}
        for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
            settings = {**common, "solver_order": order, "solver_type": kind}
            label = f"-{order} {kind}" if order == 2 else f"-{order}"
            methods[f"DPM++multistep{label}{tail}"] = Method(partial(_scaled, multistep, **settings), to_zero=True)
            noise = {**settings, "algorithm_type": "dpmsolver"}
            methods[f"DPM multistep{label}{tail}"] = Method(partial(_scaled, multistep, **noise))
            edm = partial(_edm, diffusers.EDMDPMSolverMultistepScheduler, **settings)
            methods[f"EDM-DPM++{label}{tail}"] = Method(edm, to_zero=True)
        for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun")):
            settings = {**common, "solver_order": order, "solver_type": kind}
            methods[f"DPM++singlestep-{order} {kind}{tail}"] = Method(partial(_scaled, single, **settings), to_zero=lower)
            noise = {**settings, "algorithm_type": "dpmsolver"}
            methods[f"DPM singlestep-{order} {kind}{tail}"] = Method(partial(_scaled, single, **noise))
        for order in (2, 3, 4):
            for kind in ("bh1", "bh2"):
                settings = {**common, "solver_order": order, "solver_type": kind}
                unipc = diffusers.UniPCMultistepScheduler
                methods[f"UniPC-{order} {kind}{tail}"] = Method(partial(_scaled, unipc, **settings), to_zero=lower and kind == "bh2")
                noise = {**settings, "predict_x0": False}
                methods[f"UniPC-{order} {kind} noise{tail}"] = Method(partial(_scaled, unipc, **noise))
        for order in (2, 3):
            deis = partial(_scaled, diffusers.DEISMultistepScheduler, **common, solver_order=order)
            methods[f"DEIS-{order}{tail}"] = Method(deis)
            for kind in ("data", "noise"):
                settings = {**common, "predictor_order": order, "corrector_order": order + 1, "tau_func": _no_noise}
                settings["algorithm_type"] = f"{kind}_prediction"
                methods[f"SA-{order} {kind}{tail}"] = Method(partial(_scaled, diffusers.SASolverScheduler, **settings))
    return methods


def _no_noise(t: Any) -> int:
    return 0


def _levels(scheduler: Any, sigmas: Tensor) -> Any:
    """`scheduler`, reset, with these levels."""
    count = len(sigmas) - 1
    scheduler.set_timesteps(count)
    scheduler.sigmas, scheduler.timesteps, scheduler.num_inference_steps = sigmas, torch.arange(float(count)), count
    scheduler.set_begin_index(0)
    return scheduler


def _scaled(maker: Callable[..., Any], denoiser: Denoiser, x: Tensor, sigmas: Tensor, **settings: Any) -> Tensor:
    if maker.__name__ in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"):
        settings["final_sigmas_type"] = "sigma_min" if sigmas[-1] > 0 else "zero"
    scheduler = _levels(maker(prediction_type="sample", **settings), sigmas)
    scale = torch.sqrt(1 + sigmas**2)
    y = x / scale[0]
    for k, t in enumerate(scheduler.timesteps):
        y = scheduler.step(denoiser(y * scale[k], float(sigmas[k])), t, y, return_dict=False)[0]
    return y * scale[-1]


def _unscaled(maker: Callable[..., Any], denoiser: Denoiser, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    scheduler = _levels(maker(prediction_type="sample"), sigmas)
    scheduler.is_scale_input_called = True
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(denoiser(x, float(sigmas[k])), t, x, return_dict=False, **options)[0]
    return x


def _edm(maker: Callable[..., Any], denoiser: Denoiser, x: Tensor, sigmas: Tensor, **settings: Any) -> Tensor:
    final = "sigma_min" if sigmas[-1] > 0 else "zero"
    scheduler = _levels(maker(sigma_data=1.0, final_sigmas_type=final, **settings), sigmas)
    for k, t in enumerate(scheduler.timesteps):
        sigma = float(sigmas[k])
        output = (denoiser(x, sigma) - x / (sigma**2 + 1)) * math.sqrt(sigma**2 + 1) / sigma  # undoes its preconditioning
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


def _two_stages(maker: Callable[..., Any], denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun and KDPM2 keep each level twice, and KDPM2 the geometric means between levels besides; noise prediction."""
    scheduler = maker(prediction_type="epsilon")
    scheduler.set_timesteps(len(sigmas) - 1)
    between = torch.exp(0.5 * (sigmas[1:].log() + sigmas[:-1].log()))
    second = between if maker.__name__.startswith("KDPM2") else sigmas[1:]
    scheduler.sigmas = torch.cat((sigmas[:1], sigmas[1:].repeat_interleave(2)))
    scheduler.sigmas_interpol = torch.cat((sigmas[:1], between.repeat_interleave(2)))
    scheduler.is_scale_input_called = True
    scheduler.set_begin_index(0)
    for k in range(len(sigmas) - 1):
        for sigma in (float(sigmas[k]), float(second[k])):
            if sigma > 0:  # the step to 0 is its first stage alone
                noise = (x - denoiser(x, sigma)) / sigma
                x = scheduler.step(noise, torch.tensor(0.0), x, return_dict=False)[0]
    return x


def _cumulative(sigmas: Tensor) -> Tensor:
    return 1 / (1 + sigmas**2)


def _ddim(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    from diffusers import DDIMScheduler

    count = len(sigmas) - 1
    scheduler = DDIMScheduler(num_train_timesteps=count, clip_sample=False, prediction_type="sample")
    scheduler.set_timesteps(count)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = _cumulative(sigmas[:-1].flip(0)), _cumulative(sigmas[-1])
    scale = torch.sqrt(1 + sigmas**2)
    y = x / scale[0]
    for k in range(count):
        y = scheduler.step(denoiser(y * scale[k], float(sigmas[k])), count - 1 - k, y, return_dict=False)[0]
    return y * scale[-1]


def _pndm(denoiser: Denoiser, x: Tensor, sigmas: Tensor, skip_prk_steps: bool) -> Tensor:
    """Its index of a level is its time; the Runge-Kutta start needs a level halfway between each two, taken in sigma."""
    from diffusers import PNDMScheduler

    count = len(sigmas) - 1
    ratio = 1 if skip_prk_steps else 2
    rising = sigmas[:-1].flip(0)
    table = rising if skip_prk_steps else torch.stack((rising, (rising + torch.cat((rising[1:], rising[-1:]))) / 2), 1).flatten()
    scheduler = PNDMScheduler(num_train_timesteps=ratio * count, skip_prk_steps=skip_prk_steps)
    scheduler.set_timesteps(count)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = _cumulative(table), _cumulative(sigmas[-1])
    y = x / torch.sqrt(1 + sigmas[0] ** 2)
    for t in scheduler.timesteps.tolist():
        sigma = float(table[t])
        scale = math.sqrt(1 + sigma**2)
        noise = (y * scale - denoiser(y * scale, sigma)) / sigma
        y = scheduler.step(noise, t, y, return_dict=False)[0]
    return y * torch.sqrt(1 + sigmas[-1] ** 2)


def _ipndm(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    from diffusers import IPNDMScheduler

    scheduler = _levels(IPNDMScheduler(), sigmas)
    scale = torch.sqrt(1 + sigmas**2)
    scheduler.alphas, scheduler.betas = 1 / scale, sigmas / scale
    y = x / scale[0]
    for k, t in enumerate(scheduler.timesteps):
        noise = (y * scale[k] - denoiser(y * scale[k], float(sigmas[k]))) / sigmas[k]
        output = (noise - y * scheduler.betas[k]) / scheduler.alphas[k]  # its own output, of which it takes the noise
        y = scheduler.step(output, t, y, return_dict=False)[0]
    return y * scale[-1]
