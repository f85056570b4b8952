"""Samples beside the laws of their made data, of three configurations that a laptop trains: weather, volumes and spectrograms.

    python benchmarks/fields.py                    # all three
    python benchmarks/fields.py --only volumes

Each trains the network of its file in experiments/configs/ in runs/, or uses the one that is there, and draws as many samples as the file
says. The same numbers of as many held-out items stand beside them, and the CPU seconds of a training of this call (all threads).

weather, five variables of scales 1e5 to 1e-8 around the globe, land cut out: all of valid points, in units of each variable's own standard
deviation (`sde_gen.data.weather.weather_law`):

mean, std     of each variable over all valid points, less its true mean and over its true standard deviation, with standard errors over
              samples (each sample's own mean, and mean square about the true mean)
variables     correlations of the ten pairs of variables at one point, over all points
east, north   correlations with the point 1, 2, 4 and 8 to the east, over all pairs, and over those across the ends of the grid alone;
              and 1, 2 and 4 to the north
covariance    |found - exact|/|exact|, Frobenius, of the whole covariance of valid entries, without the part that so few samples make

volumes (`sde_gen.data.toy_measurements.volume_spectrum`):

std           over the true one
spectrum      power over the true spectrum, mean over the frequencies of a length that rounds to 0, 1, ... periods a volume
neighbours    the correlation of voxels 1, 2 and 4 apart along the axes

of both, which are Gaussian fields, what the network's denoising errs beyond the law's own, by noise level and in nats (`excess`).

spectrograms (`sde_gen.data.toy_measurements.chirp_spectrogram`): to each sample the chirp is fitted that is nearest in dB.

misfit        root mean square (dB) between a sample and its chirp, the mean over samples; 0 for the data. And how many are below 3 dB
parameters    mean and standard deviation of where the chirps begin and end and of how they decay, as shares of their ranges: 1/2 and
              1/sqrt(12) of the uniform law; and the correlations of the three, 0
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen
from sde_gen.commands.config import read_config, resolve
from sde_gen.commands.run_data import default_directory
from sde_gen.commands.runs import open_run
from sde_gen.data import rows_drawn
from sde_gen.data.toy_measurements import (
    BINS,
    DECAY,
    FRAMES,
    HIGH,
    LOW,
    VOLUME_MEAN,
    VOLUME_STD,
    VOXELS,
    chirp_spectrogram,
    volume_spectrum,
)
from sde_gen.data.weather import VARIABLES, ocean, weather_law
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "experiments" / "configs"
EAST, NORTH = (1, 2, 4, 8), (1, 2, 4)
APART, GOOD_FIT = (1, 2, 4), 3.0
Statistics = dict[str, dict[Any, list[float]]]
"""By kind and name a mean over samples and its standard error."""
QUICK: dict[str, Any] = {
    "training": {"steps": 4, "batch": 8, "evaluations": 1},
    "data": {"limit": 100},
    "model": {"network": "mlp", "options": {"width": 8, "depth": 1}},
    "sampling": {"samples": 20, "steps": 4},
}


def with_error(each: Tensor) -> list[float]:
    """The mean over samples (N,) and its standard error."""
    return [float(each.mean()), float(each.std() / math.sqrt(len(each)))]


def compare(found: Statistics, beside: Statistics, right: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Each statistic of samples with its error, `found`, and of held-out items, `beside`, next to its exact value and how many errors the
    samples are off."""

    def off(value: list[float], exact: float) -> float:
        difference = value[0] - exact
        return difference / value[1] if value[1] > 0 else math.copysign(math.inf, difference) if difference else 0.0

    return {
        kind: {
            str(name): {"exact": right[kind][name], "samples": value, "errors_off": off(value, right[kind][name])}
            | {"held_out": beside[kind][name]}
            for name, value in part.items()
        }
        for kind, part in found.items()
    }


def moments(z: Tensor) -> dict[str, Any]:
    """Statistics of fields z (N, 5, 16, 32) in units of the law, 0 on land, each with its error over the fields."""
    sea = ocean()
    rows: dict[str, Any] = {"mean": {}, "std": {}, "variables": {}, "east": {}, "across the ends": {}, "north": {}}
    for k, name in enumerate(VARIABLES):
        rows["mean"][name] = with_error(z[:, k][:, sea].mean(1))
        value, error = with_error(z[:, k][:, sea].square().mean(1))
        rows["std"][name] = [math.sqrt(value), error / (2 * math.sqrt(value))]
    for k, one in enumerate(VARIABLES):
        for m, other in enumerate(VARIABLES):
            if k < m:
                rows["variables"][f"{one}, {other}"] = with_error((z[:, k] * z[:, m])[:, sea].mean(1))
    for lag in EAST:
        both = sea & sea.roll(-lag, 1)
        product = (z * z.roll(-lag, 3)).mean(1)
        rows["east"][lag] = with_error(product[:, both].mean(1))
        ends = both.clone()
        ends[:, :-lag] = False
        rows["across the ends"][lag] = with_error(product[:, ends].mean(1))
    for lag in NORTH:
        both = sea[lag:] & sea[:-lag]
        rows["north"][lag] = with_error((z[:, :, lag:] * z[:, :, :-lag]).mean(1)[:, both].mean(1))
    return rows


def exact() -> dict[str, Any]:
    """What `moments` gives of the law itself."""
    _, _, correlations = weather_law()
    c = correlations.reshape(5, 16, 32, 5, 16, 32)
    rows: dict[str, Any] = {"mean": dict.fromkeys(VARIABLES, 0.0), "std": dict.fromkeys(VARIABLES, 1.0)}
    names = list(VARIABLES)
    rows["variables"] = {f"{names[k]}, {names[m]}": float(c[k, 4, 9, m, 4, 9]) for k in range(5) for m in range(k + 1, 5)}
    rows["east"] = {lag: float(c[0, 4, 3, 0, 4, 3 + lag]) for lag in EAST}
    rows["across the ends"] = dict(rows["east"])
    rows["north"] = {lag: float(c[0, 4, 3, 0, 4 + lag, 3]) for lag in NORTH}
    return rows


def covariance_error(z: Tensor) -> list[float]:
    """|found - exact|/|exact| of the covariance of valid entries about the true mean, without what N Gaussian draws of the law add to its
    square, and its jackknife error over ten blocks."""
    valid = ocean().expand(5, -1, -1).flatten()
    right = weather_law()[2][valid][:, valid].float()
    flat = z.flatten(1)[:, valid].float()

    def error(rows: Tensor) -> float:
        found = rows.T @ rows / len(rows)
        noise = (right.square().sum() + right.trace().square()) / len(rows)
        square = (found - right).square().sum() - noise
        return float(square.clamp_min(0.0).sqrt() / right.norm())

    blocks = torch.arange(len(flat)) % 10
    left_out = torch.tensor([error(flat[blocks != k]) for k in range(10)])
    return [error(flat), float(left_out.std() * 9 / math.sqrt(10))]


def standard(x: Tensor) -> Tensor:
    """Fields in the units of the law, float64, 0 on land."""
    mean, stds, _ = weather_law()
    return torch.where(ocean(), (x.double() - mean) / stds[:, None, None], 0.0)


def measure_weather(x: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Everything of samples x and of held-out fields beside the law."""
    rows = compare(moments(standard(x)), moments(standard(held_out)), exact())
    whole = {"samples": covariance_error(standard(x)), "held_out": covariance_error(standard(held_out))}
    return {"statistics": rows, "covariance": whole}


def volume_statistics(x: Tensor) -> Statistics:
    """Statistics of volumes x (N, 1, 16, 16, 16), each with its error over the volumes."""
    z = (x[:, 0].double() - VOLUME_MEAN) / VOLUME_STD
    value, error = with_error(z.square().flatten(1).mean(1))
    power = torch.fft.fftn(z, dim=(-3, -2, -1), norm="ortho").abs().square() * VOLUME_STD**2 / volume_spectrum()
    shell = _shells()
    spectrum = {k: with_error(power[:, shell == k].mean(1)) for k in range(int(shell.max()) + 1)}
    neighbours = {r: with_error(torch.stack([(z * z.roll(r, axis)).flatten(1).mean(1) for axis in (1, 2, 3)]).mean(0)) for r in APART}
    return {"std": {"": [math.sqrt(value), error / (2 * math.sqrt(value))]}, "spectrum": spectrum, "neighbours": neighbours}


def _shells() -> Tensor:
    k = torch.fft.fftfreq(VOXELS, 1 / VOXELS, dtype=torch.float64)
    return (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).sqrt().round().long()


def measure_volumes(x: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Everything of samples x and of held-out volumes beside the law."""
    covariance = torch.fft.ifftn(volume_spectrum()).real / VOLUME_STD**2
    spectrum = dict.fromkeys(range(int(_shells().max()) + 1), 1.0)
    right = {"std": {"": 1.0}, "spectrum": spectrum, "neighbours": {r: float(covariance[r, 0, 0]) for r in APART}}
    return {"statistics": compare(volume_statistics(x), volume_statistics(held_out), right)}


def nearest_chirps(x: Tensor, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """The chirps nearest to spectrograms x (N, 1, 128, 256): their beginnings, ends and decays (N, 3) as shares of the data's ranges, and
    the root mean square (dB) of what is left (N,). Levenberg and Marquardt's steps from a line through each frame's tallest bins."""
    levels, count = x[:, 0].double(), len(x)
    time_, bins = torch.linspace(0, 1, FRAMES, dtype=torch.float64), torch.arange(BINS, dtype=torch.float64)
    weights = torch.exp((levels - levels.amax(1, keepdim=True)) / 4)
    place = (weights * bins[:, None]).sum(1) / weights.sum(1)
    line = torch.linalg.lstsq(torch.stack([1 - time_, time_], 1), place.T).solution.T
    decay = -(levels.amax(1) * time_).sum(1) / time_.square().sum()
    shares = torch.cat([(line - LOW) / (HIGH - LOW), decay[:, None] / DECAY], 1).clamp(0, 1)

    def off(u: Tensor) -> Tensor:
        return (chirp_spectrogram(LOW + (HIGH - LOW) * u[:, 0], LOW + (HIGH - LOW) * u[:, 1], DECAY * u[:, 2])[:, 0] - levels).flatten(1)

    left, damping, small = off(shares), torch.full((count,), 1e-2, dtype=torch.float64), 1e-5
    for _ in range(rounds):
        slopes = torch.stack([(off(shares + small * e) - left) / small for e in torch.eye(3).double()], 2)
        square = slopes.mT @ slopes
        square = square + torch.diag_embed(damping[:, None] * square.diagonal(dim1=1, dim2=2) + 1e-9)
        tried = shares - torch.linalg.solve(square, slopes.mT @ left[..., None])[..., 0]
        then = off(tried)
        better = then.square().sum(1) < left.square().sum(1)
        shares, left = torch.where(better[:, None], tried, shares), torch.where(better[:, None], then, left)
        damping = torch.where(better, damping / 3, damping * 4)
    return shares, left.square().mean(1).sqrt()


def chirp_statistics(x: Tensor) -> Statistics:
    """Statistics of the chirps nearest to spectrograms, each with its error over the spectrograms."""
    shares, off = nearest_chirps(x)
    names, centred = ("begin", "end", "decay"), shares - 0.5
    rows: Statistics = {"misfit": {"dB": with_error(off), "below 3 dB": with_error((off < GOOD_FIT).double())}}
    rows["mean"] = {name: with_error(shares[:, k]) for k, name in enumerate(names)}
    squares = [with_error(centred[:, k].square()) for k in range(3)]
    rows["std"] = {name: [math.sqrt(value), error / (2 * math.sqrt(value))] for name, (value, error) in zip(names, squares, strict=True)}
    pairs = itertools.combinations(range(3), 2)
    rows["correlation"] = {f"{names[i]}, {names[j]}": with_error(12 * centred[:, i] * centred[:, j]) for i, j in pairs}
    return rows


def measure_spectrograms(x: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Everything of samples x and of held-out spectrograms beside the law."""
    found = chirp_statistics(x)
    value = {"mean": 0.5, "std": 12**-0.5, "correlation": 0.0}
    right = {kind: dict.fromkeys(part, value.get(kind, 0.0)) for kind, part in found.items()}
    right["misfit"]["below 3 dB"] = 1.0
    return {"statistics": compare(found, chirp_statistics(held_out), right)}


def gaussian_law(name: str, model: sde_gen.ScoreModel) -> tuple[Tensor, Callable[[Tensor, float, float], Tensor]] | None:
    """Of data that are Gaussian fields which entries are data, and E[x_0 | x_t] as a function of x_t in normalised units, alpha and sigma;
    None of others."""
    assert model.normalizer is not None
    shape = {"weather": (5, 16, 32), "volumes": (1, VOXELS, VOXELS, VOXELS)}.get(name)
    if shape is None:
        return None
    zero, one = model.normalizer.encode(torch.stack([torch.zeros(shape), torch.ones(shape)]).double())
    scale = one - zero
    if name == "volumes":
        mean, spectrum = zero + scale * VOLUME_MEAN, volume_spectrum() * scale.flatten()[0] ** 2

        def of_volumes(x: Tensor, alpha: float, sigma: float) -> Tensor:
            gain = alpha * spectrum / (alpha**2 * spectrum + sigma**2)
            return mean + torch.fft.ifftn(torch.fft.fftn(x - alpha * mean, dim=(-3, -2, -1)) * gain, dim=(-3, -2, -1)).real

        return torch.ones(shape, dtype=torch.bool), of_volumes
    law_mean, stds, correlations = weather_law()
    valid = ocean().expand(shape)
    keep = valid.flatten()
    spread = (scale * stds[:, None, None]).flatten()[keep]
    centre = (zero + scale * law_mean).flatten()[keep]
    values, vectors = torch.linalg.eigh(correlations[keep][:, keep] * spread[:, None] * spread)

    def of_weather(x: Tensor, alpha: float, sigma: float) -> Tensor:
        gain = alpha * values / (alpha**2 * values + sigma**2)
        found = torch.zeros(len(x), len(keep), dtype=torch.float64)
        found[:, keep] = centre + ((x.flatten(1)[:, keep] - alpha * centre) @ vectors * gain) @ vectors.T
        return found.reshape(x.shape)

    return valid, of_weather


@torch.no_grad()
def excess(name: str, model: sde_gen.ScoreModel, held_out: Tensor, levels: int = 14) -> dict[str, Any] | None:
    """What the network's denoising errs beyond the law's own, at noise levels that are even in lambda, the half log-SNR: the mean square
    error of the law and of the network about it, and the integral of SNR times the latter over lambda, which is the Kullback-Leibler
    divergence of the SDE's paths in nats for each entry (Song et al. 2021, arXiv:2101.09258). None where the law is not Gaussian."""
    law = gaussian_law(name, model)
    if law is None:
        return None
    valid, denoise = law
    assert model.normalizer is not None
    z = model.normalizer.encode(held_out[rows_drawn(len(held_out), 100, 0)]).double()
    there = valid.expand(z.shape)
    high, low = (float(model.sde.half_log_snr(t)) for t in (model.sde.t_min, model.sde.t_max))
    width, generator, rows = (high - low) / levels, torch.Generator().manual_seed(1), []
    for k in range(levels):
        t = model.sde.time_of(torch.tensor(low + (k + 0.5) * width, dtype=torch.float64))
        alpha, sigma = (float(value) for value in model.sde.marginal(t))
        x = torch.where(there, alpha * z + sigma * torch.randn(z.shape, generator=generator), 0.0)
        right = denoise(x, alpha, sigma)
        beyond = float((model.denoise(x.float(), float(t)).double() - right)[there].square().mean())
        rows.append({"noise": sigma / alpha, "law": float((right - z)[there].square().mean()), "beyond": beyond})
    return {"levels": rows, "nats": sum(row["beyond"] / row["noise"] ** 2 for row in rows) * width}


MEASURES: dict[str, tuple[str, Callable[[Tensor, Tensor], dict[str, Any]]]] = {
    "weather": ("weather.yaml", measure_weather),
    "volumes": ("volume.yaml", measure_volumes),
    "spectrograms": ("spectrograms.yaml", measure_spectrograms),
}
"""Of each data set its file in experiments/configs and what measures its samples."""


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: {found['training']}, CPU seconds {found['cpu_seconds']}; {found['samples']} samples by {found['solver']}\n")
    print("| | | exact | samples | held-out |\n|---|---|---|---|---|")
    for kind, part in found["statistics"].items():
        for row_name, row in part.items():
            values = [f"{row[key][0]:.4f} +- {row[key][1]:.4f}" for key in ("samples", "held_out")]
            print(f"| {kind} | {row_name} | {row['exact']:.4f} | {values[0]} | {values[1]} |")
    if found.get("excess") is not None:
        print(f"the network loses {found['excess']['nats']:.3f} nats for each entry; by noise level beyond the law's own square error:")
        print(", ".join(f"{row['noise']:.3g}: {row['beyond'] / row['law']:.1%}" for row in found["excess"]["levels"]))
    for key, (value, error) in found.get("covariance", {}).items():
        print(f"covariance of {key}: off by {value:.1%} +- {error:.1%} (Frobenius)")


def run(name: str, directory: Path | None, quick: bool, steps: int | None = None) -> dict[str, Any]:
    """Train the configuration of the data set `name` (for so many `steps`) unless `directory` (None: that of its name in runs/) holds it,
    and measure samples."""
    file, measure = MEASURES[name]
    config = resolve(read_config(CONFIGS / file), QUICK if quick else {}, {} if steps is None else {"training": {"steps": steps}})
    directory = default_directory(config) if directory is None else directory
    trains = not (directory / "checkpoint").exists()
    began = time.process_time()
    trained = open_run(config, directory, say=lambda _: None, progress=False)
    spent = round(time.process_time() - began) if trains else None
    sampling, training = config.sampling, config.training
    shape = (sampling.samples, *trained.data.shape)
    out = sde_gen.sample(
        trained.model, shape, sampling.solver, steps=sampling.steps, seed=sampling.seed, batch_size=sampling.batch, progress=False
    )
    assert trained.data.test is not None
    held_out = trained.data.test[: len(out.x)]  # drawn independently
    return measure(out.x, held_out) | {
        "excess": excess(name, trained.model, trained.data.test),
        "samples": len(out.x),
        "held_out": len(held_out),
        "training": f"{training.steps} steps of {training.batch}",
        "cpu_seconds": spent,
        "solver": f"{sampling.solver}, {sampling.steps} steps",
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), help="these alone; the others' results stay")
    parser.add_argument("--run", type=Path, help="the run directory, of one data set (default: that of its name in runs/)")
    parser.add_argument("--steps", type=int, help="train for so many steps instead of the file's")
    parser.add_argument("--quick", action="store_true", help="little training, few samples")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "fields.json")
    args = parser.parse_args(arguments)
    if args.run is not None and len(args.only) != 1:
        parser.error(f"--run is the directory of one data set, got {len(args.only)}: choose one by --only")
    results = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    for name in args.only:
        found = run(name, args.run, args.quick, args.steps)
        show(name, found)
        results[name] = json.loads(to_json(found), parse_float=lambda text: float(f"{float(text):.4g}"))
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(to_json(results, 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
