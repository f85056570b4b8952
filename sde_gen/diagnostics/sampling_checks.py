"""Checks of sampling: whether its prior stands for the data, whether it takes enough steps, and whether its values are the data's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data.labels import rows_in_turn
from ..metrics import Estimate, sliced_wasserstein
from ..models.denoiser import Denoiser
from ..models.prior import MatchedPrior
from ..sampling.automatic import flow_solver
from ..sampling.sample import Samples, sample
from ..solvers import FixedStepSolver, make_solver
from .finding import SIGNIFICANCE, Finding, std_error
from .level_errors import LevelErrors
from .marginals import check_marginals

PRIOR_NATS = 0.02
"""KL of the data at t_max to the prior that counts: by Pinsker's inequality a tenth of the samples could be misplaced."""
LEAST_ALPHA = 0.5
"""A process with a larger alpha at t_max explodes rather than fades: its noise alone must mix the data."""
STEP_FACTOR, PERMUTATIONS, CALLS = 4, 40, 40_000
"""The samples are compared with those of so many times the steps, by so many permutations, in about so many network evaluations."""


def check_prior(model: Denoiser, measured: LevelErrors) -> list[Finding]:
    """Find a prior that does not stand for the data at t_max."""
    alpha, sigma = measured.marginal(model.sde.t_max)
    data = MatchedPrior(measured.moments, alpha, sigma)
    generator = torch.Generator().manual_seed(measured.seed)
    z = torch.randn(1024, *measured.items.shape[1:], generator=generator, dtype=torch.float64).to(measured.items.device)
    x = data.from_noise(z)
    each = data.log_prob(x) - model.prior.log_prob(x)
    nats = Estimate(float(each.mean()), std_error(each))
    flat = measured.reference[:512].flatten(1).double()
    widest = float(torch.cdist(flat, flat).max())
    reach = sigma / alpha
    numbers = {"nats": nats.value, "nats_error": nats.std_error, "sigma_over_alpha": reach, "largest_distance": widest}
    advice = f"a larger sigma_max or beta_max (sigma/alpha of at least {widest:.3g}, the largest pairwise distance)"
    if nats.value - SIGNIFICANCE * nats.std_error > PRIOR_NATS:
        text = (
            f"at t_max the data is {nats} nats ({nats.value / flat.shape[1]:.2g} a dimension) from the prior that "
            f"sampling starts in; sigma/alpha is {reach:.3g} there"
        )
        return [Finding("sigma_max too small", "fault", text, f"{advice}, prior='matched', or data normalised to unit spread", numbers)]
    if alpha > LEAST_ALPHA and reach < widest:
        text = (
            f"sigma/alpha at t_max is {reach:.3g}, and items lie up to {widest:.3g} apart (normalised units): the noise does not mix them"
        )
        return [Finding("sigma_max too small", "warning", text, advice, numbers)]
    return []


def check_samples(
    model: Denoiser,
    reference: Tensor,
    of_reference: Mapping[str, Tensor],
    sampling: dict[str, Any],
    seed: int,
    samples: int | None,
) -> list[Finding]:
    """Find a solver with too few steps: its samples differ from those of `STEP_FACTOR` times the steps, and lie farther from the data.
    Where it has enough, find values of the samples that are not the data's (`check_marginals`).

    reference: (m, *) data in its own units. of_reference: its conditions by name, those of the samples. sampling, samples: see
    `diagnose`.
    """
    name, steps, grid = sampling.pop("solver", "pc"), sampling.pop("steps", None), sampling.pop("grid", None)
    method = make_solver(flow_solver(name), **sampling) if isinstance(name, str) else name
    steps = method.default_steps if steps is None else steps
    many = STEP_FACTOR * steps
    fixed = isinstance(method, FixedStepSolver)
    count = max(32, min(1000, CALLS // ((steps + many) * (method.calls or 1)))) if samples is None else samples
    shape = (count, *reference.shape[1:])
    rows = rows_in_turn(len(reference), count, seed, of_reference.get("label"))
    cond = {name: value[rows.to(value.device)] for name, value in of_reference.items()}
    common: dict[str, Any] = {"cond": cond, "on_failure": "mask", "progress": False, "batch_size": min(count, 256)}
    options = sampling if isinstance(name, str) else {}
    few = sample(model, shape, name, steps, seed, grid=grid, **common, **options)
    lost = float(few.failed.double().mean())
    if lost > 0:
        text = f"{lost:.0%} of {count} samples of solver {name!r} with {steps} steps are not finite, grew absurdly or met the step cap"
        return [
            Finding(
                "too few solver steps", "fault", text, "more --steps; for an adaptive solver a larger cap or tolerance", {"failed": lost}
            )
        ]
    off = _too_few(model, reference, (name, steps, grid), few, common, options, seed) if fixed else []
    return off or check_marginals(few.x, reference)


def _too_few(
    model: Denoiser,
    reference: Tensor,
    chosen: tuple[Any, int, Any],
    few: Samples,
    common: dict[str, Any],
    options: dict[str, Any],
    seed: int,
) -> list[Finding]:
    """Compare the samples `few`, of `chosen` solver, steps and grid, with those of more steps."""
    name, steps, grid = chosen
    many, (count, *shape) = STEP_FACTOR * steps, few.x.shape
    fine = sample(
        model,
        (count, *shape),
        name,
        many,
        seed + 1,
        grid=None if grid == "fitted" or isinstance(grid, Tensor) else grid,
        **common,
        **options,
    )
    encode = model.normalizer.encode if model.normalizer is not None else lambda x: x
    a, b = (encode(out.x[~out.failed]).cpu().double().flatten(1) for out in (few, fine))
    if len(b) < 32:
        return []
    distance, null = permuted_distance(a, b, seed)
    data = encode(reference[:count].to(few.x.device)).cpu().double().flatten(1)
    off = [sliced_wasserstein(part, data, bootstrap=2, seed=seed).value for part in (a, b)]
    if not (distance - null.value > SIGNIFICANCE * null.std_error and off[0] > off[1]):
        return []
    text = (
        f"{count} samples with {steps} steps lie {distance:.3g} (sliced Wasserstein, normalised units) from as many with {many}, "
        f"where chance is {null}; to the data {off[0]:.3g} and {off[1]:.3g}"
    )
    advice = f"--steps {many} or a solver of higher order (angle, dpm, unipc), or --grid fitted; see `sde-gen compare`"
    numbers = {"distance": distance, "chance": null.value, "chance_error": null.std_error, "to_data": off[0], "fine_to_data": off[1]}
    return [Finding("too few solver steps", "fault", text, advice, numbers)]


def permuted_distance(a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, Estimate]:
    """The sliced Wasserstein distance of two sets of samples (N, D), and the one that chance gives.

    The second is its mean and standard deviation where the items of both sets are dealt out anew at random: what two sets of one
    distribution have.
    """
    pooled, generator = torch.cat((a, b)), torch.Generator().manual_seed(seed)
    found = sliced_wasserstein(a, b, bootstrap=2, seed=seed).value
    dealt = []
    for _ in range(PERMUTATIONS):
        order = torch.randperm(len(pooled), generator=generator)
        dealt.append(sliced_wasserstein(pooled[order[: len(a)]], pooled[order[len(a) :]], bootstrap=2, seed=seed).value)
    values = torch.tensor(dealt, dtype=torch.float64)
    return found, Estimate(float(values.mean()), float(values.std()))
