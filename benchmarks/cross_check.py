"""Our samplers against the code of k-diffusion, diffusers and azula, step for step: the relative difference of the states.

    peers-env/bin/python benchmarks/cross_check.py            # benchmarks/peers.txt says how to make peers-env

An exact-score Gaussian mixture, alpha = 1, float64: the same start, the same noise levels, for stochastic methods the same normal draws.
Every row is a pair whose definitions match, so that what differs is rounding: a difference above `SAME` is a finding and exits with 1.
The second table has the fitted order of multistep methods of order 3, whose first two steps are so short that starting from no
history costs nothing: DPM-Solver++ 3M as published and as these libraries have it lacks a factor of 2 in its second difference and has
order 2. A library that is not installed is skipped with a line that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peer_samplers
import torch
from flow_problems import Levels, flow, mixture
from peer_samplers import LIBRARIES, Denoiser, in_float64
from torch import Tensor

import sde_gen
from sde_gen import make_sde, make_solver
from sde_gen.exact.mixtures import slope
from sde_gen.solvers import Run, make_grid, run_updates

HERE = Path(__file__).resolve().parent
SIGMA_MIN, SIGMA_MAX = 0.02, 20.0
DIM, COUNT, STEPS = 16, 64, 20
SAME = 1e-12
"""The largest relative difference that is rounding: float64 through 20 steps."""
ORDER_STEPS = (40, 80, 160, 320)
FULL = ", full order to the end"

# Ours (name, options) beside the names of `peer_samplers`; the same equations by both sides' documents.
MATCHES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("ddim", {}, ["k-diffusion Euler", "azula DDIM", "azula Euler", "diffusers DDIM", "diffusers Euler"]),
    ("heun", {}, ["k-diffusion Heun", "azula Heun", "diffusers Heun"]),
    (
        "dpm",
        {"order": 2},
        [
            "k-diffusion DPM++2M",
            "k-diffusion DPM++2M-SDE midpoint",
            *(f"diffusers {n}-2 midpoint{FULL}" for n in ("DPM++multistep", "EDM-DPM++")),
        ],
    ),
    ("dpm", {"order": 2, "form": "integral"}, ["k-diffusion DPM++2M-SDE heun", f"diffusers DPM++multistep-2 heun{FULL}", "azula xEAB-2"]),
    ("dpm", {"order": 3}, ["azula xEAB-3"]),
    ("dpm", {"order": 4}, ["azula xEAB-4"]),
    ("dpm", {"order": 2, "prediction": "noise"}, [f"diffusers DPM multistep-2 midpoint{FULL}"]),
    ("dpm", {"order": 3, "prediction": "noise"}, ["azula zEAB-3"]),
    ("ab", {"order": 2}, ["k-diffusion LMS-2", "azula zAB-2", "diffusers LMS-2"]),
    ("ab", {"order": 3}, ["k-diffusion LMS-3", "azula zAB-3", "diffusers LMS-3"]),
    ("ab", {"order": 4}, ["k-diffusion LMS-4", "azula zAB-4", "diffusers LMS-4"]),
]

# Methods of order 3 by their names, whatever their coefficients.
ORDERS = ["k-diffusion DPM++3M-SDE", f"diffusers DPM++multistep-3{FULL}", f"diffusers EDM-DPM++-3{FULL}", "azula xEAB-3"]


class Drawn:
    """Normal draws made beforehand, handed out in order."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.draws = iter(draws)

    def draw(self) -> Tensor:
        return next(self.draws)


def problem() -> tuple[Any, Any, Tensor, Denoiser, Tensor]:
    """The mixture, its model along VE, the start at SIGMA_MAX, the denoiser as peers call it, and the noise of 4 STEPS draws."""
    data = mixture(DIM, 0)
    sde = make_sde("ve", sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    options: dict[str, Any] = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(1)}
    x = SIGMA_MAX * torch.randn(COUNT, DIM, **options)
    levels: Any = Levels()

    def denoiser(y: Tensor, sigma: float) -> Tensor:
        return data.denoise_at(y.flatten(1), levels, torch.tensor(sigma, dtype=torch.float64)).reshape(y.shape)

    return sde, data.model(sde), x, denoiser, torch.randn(4 * STEPS, COUNT, DIM, **options)


def ours(name: str, options: dict[str, Any], times: Tensor, draws: Sequence[Tensor] = ()) -> Tensor:
    """Our state at the end of `times`, from the problem's start."""
    sde, model, x, _, _ = problem()
    solver: Any = make_solver(name, **options)
    run = Run(model, Drawn(draws), torch.zeros(len(x), dtype=torch.int64))  # type: ignore[arg-type]
    return run_updates(run, x, solver.plan(sde, times))


def difference(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs.flatten(1)).norm() / theirs.norm())


def methods() -> dict[str, peer_samplers.Method]:
    """The deterministic methods of the libraries that are installed, "library name"."""
    makers = {name: getattr(peer_samplers, f"{name.replace('-', '_')}_methods") for name in LIBRARIES}
    found = [library for library, version in peer_samplers.versions().items() if version is not None]
    with in_float64():
        return {f"{library} {name}": method for library in found for name, method in makers[library]().items()}


def deterministic(known: dict[str, peer_samplers.Method]) -> Iterator[dict[str, Any]]:
    """A row for each pair of MATCHES; {"skipped": reason} where the library is missing."""
    sde, _, x, denoiser, _ = problem()
    times = make_grid(sde, "karras", sde.t_max, sde.t_min, STEPS)
    levels = sde.marginal(times)[1]
    for name, options, peers in MATCHES:
        mine = ours(name, options, times)
        for peer in peers:
            row: dict[str, Any] = {"ours": name, "options": options, "peer": peer}
            library = next(library for library in LIBRARIES if peer.startswith(library))
            if not any(key.startswith(library) for key in known):
                yield row | {"skipped": f"{library} is not installed"}
                continue
            with in_float64():
                yield row | {"difference": difference(mine, known[peer].run(denoiser, x[:, None, None], levels))}


def stochastic() -> Iterator[dict[str, Any]]:
    """The stochastic methods of k-diffusion, and diffusers' SDE form of DPM-Solver++, with our draws."""
    versions = peer_samplers.versions()
    sde, _, x, denoiser, draws = problem()
    times = make_grid(sde, "karras", sde.t_max, sde.t_min, STEPS)
    levels = sde.marginal(times)[1]
    image = x[:, None, None]
    pairs: list[tuple[str, dict[str, Any], str, Callable[[Any], Tensor]]] = [
        (
            "ancestral",
            {},
            "Euler ancestral",
            lambda kd: kd.sample_euler_ancestral(model, image, levels, noise_sampler=noise(), disable=True),
        ),
        (
            "ddim",
            {"eta": 1.0},
            "Euler ancestral",
            lambda kd: kd.sample_euler_ancestral(model, image, levels, noise_sampler=noise(), disable=True),
        ),
    ]
    for form, theirs in (("midpoint", "midpoint"), ("integral", "heun")):
        pairs.append(
            (
                "dpm_sde",
                {"form": form},
                f"DPM++2M-SDE {theirs}",
                lambda kd, theirs=theirs: kd.sample_dpmpp_2m_sde(
                    model, image, levels, noise_sampler=noise(), solver_type=theirs, disable=True
                ),
            )
        )

    def model(y: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(y, float(sigma[0]))

    def noise() -> Callable[..., Tensor]:
        source = Drawn(list(draws))
        return lambda sigma, after: source.draw()[:, None, None]

    for name, options, peer, run in pairs:
        row = {"ours": name, "options": options, "peer": f"k-diffusion {peer}"}
        if versions["k-diffusion"] is None:
            yield row | {"skipped": "k-diffusion is not installed"}
            continue
        with in_float64():
            yield row | {"difference": difference(ours(name, options, times, list(draws)), run(peer_samplers._k_diffusion()))}
    yield edm(versions, model, image, levels, times, draws)
    for form, kind in (("midpoint", "midpoint"), ("integral", "heun")):
        row = {"ours": "dpm_sde", "options": {"form": form}, "peer": f"diffusers SDE-DPM++2M {kind}"}
        if versions["diffusers"] is None:
            yield row | {"skipped": "diffusers is not installed"}
            continue
        with in_float64():
            yield row | {
                "difference": difference(
                    ours("dpm_sde", {"form": form}, times, list(draws)), diffusers_sde(kind, denoiser, image, levels, draws)
                )
            }


def edm(versions: dict[str, str | None], model: Any, image: Tensor, levels: Tensor, times: Tensor, draws: Tensor) -> dict[str, Any]:
    """EDM's algorithm 2: k-diffusion's Heun with churn, the last step to zero with it, and ours with final="denoise"."""
    options = {"s_churn": 8.0, "s_min": 0.05, "s_max": 10.0, "s_noise": 1.003}
    row = {"ours": "edm", "options": options, "peer": "k-diffusion Heun with churn"}
    if versions["k-diffusion"] is None:
        return row | {"skipped": "k-diffusion is not installed"}
    churned = [k for k, level in enumerate(levels.tolist()) if options["s_min"] <= level <= options["s_max"]]
    mine = ours("edm", options, times, [draws[k] for k in churned])
    end = model(mine, levels[-1:])
    kd, source = peer_samplers._k_diffusion(), Drawn(list(draws))
    with in_float64(), replaced_noise(kd, lambda x: source.draw()[:, None, None]):
        theirs = kd.sample_heun(
            model, image, torch.cat((levels, levels.new_zeros(1))), s_churn=options["s_churn"], s_tmin=options["s_min"],
            s_tmax=options["s_max"], s_noise=options["s_noise"], disable=True,
        )  # fmt: skip
    return row | {"difference": difference(end, theirs)}


@contextlib.contextmanager
def replaced_noise(module: types.ModuleType, draw: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`module` draws its normal noise from `draw`."""

    class Twin(types.ModuleType):
        randn_like = staticmethod(draw)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    module.torch = Twin("torch")  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.torch = torch  # type: ignore[attr-defined]


def diffusers_sde(kind: str, denoiser: Denoiser, x: Tensor, levels: Tensor, draws: Tensor) -> Tensor:
    """diffusers' multistep scheduler in its SDE form; its state is x/sqrt(1 + sigma^2)."""
    import diffusers

    peer_samplers.diffusers_methods()  # makes its casts to float32 casts to float64
    scheduler = peer_samplers._levels(
        diffusers.DPMSolverMultistepScheduler(
            algorithm_type="sde-dpmsolver++",
            solver_type=kind,
            prediction_type="sample",
            lower_order_final=False,
            final_sigmas_type="sigma_min",
        ),
        levels,
    )
    scale = torch.sqrt(1 + levels**2)
    y = x / scale[0]
    for k, t in enumerate(scheduler.timesteps):
        y = scheduler.step(denoiser(y * scale[k], float(levels[k])), t, y, variance_noise=draws[k][:, None, None], return_dict=False)[0]
    return y * scale[-1]


def orders(known: dict[str, peer_samplers.Method]) -> dict[str, dict[str, Any]]:
    """For ours and each of ORDERS: errors against the flow by steps, and the order fitted to the last three."""
    _, _, x, denoiser, _ = problem()
    first, last = 4.0, 0.4
    x = x * first / SIGMA_MAX
    exact = flow(denoiser, x, first, last, 2000)

    def levels(steps: int) -> Tensor:
        # Two first steps of the square of the others' size: what they lose without a history is of the fourth order.
        h = math.log(first / last) / steps
        sizes = torch.tensor([h * h, h * h, *[(math.log(first / last) - 2 * h * h) / steps] * steps], dtype=torch.float64)
        return first * torch.exp(-torch.cat((torch.zeros(1, dtype=torch.float64), sizes.cumsum(0))))

    def of_ours(sigmas: Tensor) -> Tensor:
        sde, model, _, _, _ = problem()
        run = Run(model, Drawn([]), torch.zeros(len(x), dtype=torch.int64))  # type: ignore[arg-type]
        solver: Any = make_solver("dpm", order=3)
        return run_updates(run, x, solver.plan(sde, sde.time_of(-torch.log(sigmas))))

    runs: dict[str, Callable[[Tensor], Tensor]] = {"sde_gen dpm": of_ours}
    for name in ORDERS:
        if name in known:
            runs[name] = lambda sigmas, name=name: known[name].run(denoiser, x[:, None, None], sigmas).flatten(1)
    found: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        with in_float64():
            errors = [float((run(levels(steps)) - exact).square().mean().sqrt()) for steps in ORDER_STEPS]
        found[name] = {"errors": errors, "order": slope(ORDER_STEPS[1:], errors[1:])}
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "cross_check.json")
    arguments = parser.parse_args(argv)
    versions = peer_samplers.versions()
    known = methods()
    rows = [*deterministic(known), *stochastic()]
    print("| ours | peer | relative difference |\n|---|---|---|")
    for row in rows:
        options = ", ".join(f"{key}={value}" for key, value in row["options"].items())
        cell = f"skipped: {row['skipped']}" if "skipped" in row else f"{row['difference']:.1e}"
        print(f"| {row['ours']}{f' ({options})' if options else ''} | {row['peer']} | {cell} |")
    fitted = orders(known)
    columns = ["order 3 by name", *(f"{steps} steps" for steps in ORDER_STEPS), "fitted order"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, found in fitted.items():
        print(f"| {name} | {' | '.join(f'{error:.1e}' for error in found['errors'])} | {found['order']:.2f} |")
    result: dict[str, Any] = {
        "settings": {"sigma": [SIGMA_MIN, SIGMA_MAX], "dimensions": DIM, "samples": COUNT, "steps": STEPS, "same": SAME},
        "versions": {"sde_gen": sde_gen.__version__, "torch": torch.__version__, "python": platform.python_version(), **versions},
        "differences": rows, "order_steps": list(ORDER_STEPS), "orders": fitted,
    }  # fmt: skip
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        print(f"\nskipped: {', '.join(missing)}: not installed; benchmarks/peers.txt says how to install the peers")
    if len(missing) < len(versions):
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        short = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.3g}"), parse_constant=lambda _: None)
        arguments.json.write_text(json.dumps(short, indent=1) + "\n", encoding="utf-8")
    else:
        print("nothing written: there was nothing to compare with")
    apart = [row for row in rows if row.get("difference", 0.0) > SAME]
    if apart:
        raise SystemExit(f"{len(apart)} pair(s) differ by more than {SAME:g}: {', '.join(row['peer'] for row in apart)}")
    return result


if __name__ == "__main__":
    main()
