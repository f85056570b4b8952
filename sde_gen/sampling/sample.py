"""Sampling: seeds, batches, conditions, failures and trajectories around a solver."""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import memory, parallel
from ..models.denoiser import Denoiser
from ..models.flow_map import FlowMap
from ..models.weighed import Weighed
from ..progress import bar as progress_bar
from ..randomness import NoiseStream, check_seed
from ..solvers import SOLVERS, FixedStepSolver, Graphed, Populated, Run, Solver, make_solver, solver_name
from .automatic import AUTO, choose_solver
from .failures import GROWTH, SolverError, broken, largest, locate
from .plan import DEFAULT_SOLVER, Plan, alpha_at, check_choices, check_shape, device_and_dtype, plan_run

StepHook = Callable[[int, float, Tensor], bool | None]


@dataclass(frozen=True)
class Samples:
    """What `sample` returns.

    x: (N, *shape), in the units that `units` names.
    nfe: network evaluations for each sample, counted, (N,).
    trajectory: (K, N, *shape) on the CPU, or None; times: its times (K,).
    failed: (N,) bool, the samples that are not to be used.
    fitted: whether a grid of `fit_grid` was used.
    units: "data", the data's own, or "normalised", a state.
    log_weights: of particles, (N, particles), not normalised: the mean of their exponentials estimates a sample's evidence, so that
        the particles of samples with the same conditions can be pooled; None without particles.
    ess: the effective number of particles of each sample, (N,), or None.
    lineages: the effective number of particles of the start that those of each sample come from, (N,), or None.
    evidence_error: the standard error of the logarithm of each sample's evidence, (N,), or None.
    picked: of solver "auto", which one it was and why, in a line; else None.
    """

    x: Tensor
    nfe: Tensor
    trajectory: Tensor | None
    times: Tensor | None
    failed: Tensor
    fitted: bool = False
    units: str = "data"
    log_weights: Tensor | None = None
    ess: Tensor | None = None
    lineages: Tensor | None = None
    evidence_error: Tensor | None = None
    picked: str | None = None


@torch.no_grad()
def sample(
    model: Denoiser,
    shape: Sequence[int],
    solver: str | Solver | None = None,
    steps: int | None = None,
    seed: int = 0,
    x_init: Tensor | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    cond: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    index_offset: int = 0,
    final: str | None = None,
    trajectory: str | None = None,
    step_hook: StepHook | None = None,
    on_failure: str = "raise",
    progress: bool = True,
    grid: str | Tensor | np.ndarray | Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    graph: bool = False,
    x_init_units: str = "normalised",
    particles: int | None = None,
    **solver_options: Any,
) -> Samples:
    """Draw `shape` = (N, *data shape) samples of `model`, on the model's device.

    solver: a registered name, with `solver_options`, or a Solver. None: "pc"; a flow map (see `distill`) jumps by itself, and takes none.
        "auto": by the number of steps and by what is there, see `choose_solver`; with `progress` a line on stderr says which it was, and
        so does `picked`.
    steps: of the grid; an adaptive solver takes it as the cap on attempted steps. None: the solver's default, or as many as `grid` has.
    grid: where the steps lie: a name in GRIDS, the times (steps + 1,) in either direction, or "fitted". None: what `fit_grid` found for
        this solver and steps, else the solver's default.
    seed, index_offset: sample i's noise is a function of (seed, index_offset + i) alone, whatever the batch.
    x_init: where the run starts, in the place of a draw of the prior, (N, *data shape).
    x_init_units: "normalised" says that x_init is the state at t_start; "data" that it is data in their own units, of which the state
        alpha(t_start) encode(x_init) is made. No noise is added: from a t_start above t_min that is a start for the flow's own states
        (x_init + noise of sigma(t_start) is what an edit of x_init starts from; see `mix`).
    t_start, t_end: from and to which time. None: from t_max to t_min, the data.
    cond: conditions for the network by name, tensors or arrays whose first dimension is N.
    final: what is returned of the state x at the end.
        "denoise": E[x_0 | x], by one more network call, in the data's units.
        "raw": x/alpha, the data blurred by the noise of t_end, in the data's units.
        "state": x itself, in normalised units.
        None: "denoise" for a run towards the data whose t_end is not given, else "state". A step_hook that stops a batch leaves its state.
    trajectory: "states" (x along the way, normalised units) or "denoised" (E[x_0 | x_t], the data's units), at the end of each step.
    step_hook: called as hook(step, t, x) after each step, with a copy of the state; True stops that batch there.
    on_failure: "raise" raises a SolverError that carries the healthy samples; "mask" returns all, marked in `failed`.
    progress: whether a bar is shown on a terminal; it says so where a fitted grid is used.
    batch_size: of the samples that run together; None: all.
    dtype: of the states, float32 or float64. None: that of the model's parameters, float32 for narrower ones and where there are none.
    device: of the states where the model has no parameters; it may not differ from that of a model that has some.
    graph: whether the loop of a fixed-step solver is captured as a CUDA graph and replayed for each batch from the second of a size on;
        the same samples. Ignored on other devices, and where step_hook or trajectory watches.

    particles: so many weighted states for each sample, resampled on their way, of a model that weighs them (`guide` with rule "cfg",
        `guidance.Combine`, `inverse.Twisted`): their weights turn its samples into those of the law that it stands for. x is then
        (N, particles, *data shape), with `log_weights` and `ess`; batch_size counts states, and no batch cuts a sample's. For solvers of
        the reverse SDE.

    Raises ValueError or TypeError for bad arguments; SolverError for samples that are not finite, grew absurdly (see `GROWTH`) or did
    not finish within the step cap of an adaptive solver.
    """
    if not isinstance(model, Denoiser):
        raise TypeError(f"model must be a Denoiser such as ScoreModel (sde_gen.load reads one from a path), got {type(model).__name__}")
    if particles is not None:
        given = {name: value for name, value in locals().items() if name not in ("model", "shape", "solver", "particles", "solver_options")}
        return _with_particles(model, shape, solver, particles, given, solver_options)
    count, data_shape = check_shape(shape)
    times = grid if grid is None or isinstance(grid, str | Tensor) else torch.as_tensor(grid, dtype=torch.float64)
    plan = plan_run(model, solver, steps, times, t_start, t_end, final, cond, solver_options)
    check_choices(trajectory, on_failure, x_init_units)
    if trajectory == "denoised" and isinstance(model, FlowMap):
        raise ValueError("a flow map knows no E[x_0 | x_t] along the way: trajectory must be states")
    check_seed(seed)
    batch_size = count if batch_size is None else batch_size
    for label, number, least in (("batch_size", batch_size, 1), ("index_offset", index_offset, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{label} must be a whole number of at least {least}, got {number!r}")
    if graph and not isinstance(plan.method, FixedStepSolver):
        raise ValueError(f"graph=True captures the loop of a fixed-step solver, and {plan.name!r} is none")
    if graph and model.differentiates:
        raise ValueError(f"graph=True captures no gradients, and {type(model).__name__} takes them at every step: leave graph out")
    if x_init is not None and not isinstance(x_init, Tensor):
        raise TypeError(f"x_init must be a tensor, got {type(x_init).__name__}")
    if x_init is not None and tuple(x_init.shape) != (count, *data_shape):
        raise ValueError(f"x_init must have shape {(count, *data_shape)}, got {tuple(x_init.shape)}")
    device, dtype = device_and_dtype(model, x_init, device, dtype)
    cond = model.conditions(cond, count, device)
    if plan.picked is not None and progress and parallel.rank() == 0:
        print(f"auto: {plan.picked}", file=sys.stderr, flush=True)

    method, adaptive = plan.method, plan.method.adaptive
    loop = Graphed(method) if graph and isinstance(method, FixedStepSolver) else method
    done: list[_Batch] = []
    group = method.group
    batches = deque(_batches(count, max(group, batch_size // group * group)))
    # A fixed-step solver shows its steps; an adaptive one, whose samples go at their own pace, and a graph, their finished batches.
    total, unit = (count, "sample") if adaptive or graph else (plan.steps * len(batches), "step")
    with progress_bar(total, f"sampling ({plan.name}{', fitted grid' if plan.fitted else ''})", unit, progress, leave=False) as bar:
        tick = None if adaptive or graph or bar.disable else bar.update
        while batches:
            first, last = batches.popleft()
            part = {key: tensor[first:last] for key, tensor in cond.items()}
            noise = NoiseStream(seed, index_offset + first, last - first, data_shape, dtype, device)
            z = noise.draw()  # always drawn, so that the later draws are the same with and without x_init
            x = (
                model.prior.from_noise(z)
                if x_init is None
                else _state(model, x_init[first:last].to(device), plan.start, x_init_units, dtype)
            )
            run = Run(model, noise, torch.zeros(last - first, dtype=torch.int64, device=device), part)
            batch = _Batch(model, trajectory, step_hook)
            if trajectory is not None or step_hook is not None or tick is not None:
                run.observer = batch.watcher(tick)
            limit = GROWTH * largest(x).clamp_min(max(1.0, model.sde.prior_std))
            try:
                y = loop.solve(run, x, plan.start, plan.end, plan.steps, plan.grid)
            except (RuntimeError, MemoryError) as error:
                if not memory.out_of_memory(error) or last - first == group:
                    raise
                memory.release()
                half = -(-(last - first) // (2 * group)) * group
                warnings.warn(f"out of memory: going on with batches of {half} (batch_size={half} starts so)", stacklevel=3)
                batches = deque((begin, min(begin + half, count)) for begin in range(first, count, half))
                continue
            lost = broken(y, limit)
            batch.finish(run, y, plan, lost, limit)
            if bool(batch.failed.any()) and on_failure == "raise":
                again = NoiseStream(seed, index_offset + first, last - first, data_shape, dtype, device)
                again.draw()
                where = locate(plan, Run(model, again, torch.zeros_like(run.nfe), part), x, lost, limit)
                index = torch.arange(last)
                bad = torch.cat((torch.zeros(first, dtype=torch.bool), batch.failed.cpu()))
                healthy = torch.cat((*(b.x for b in done), batch.x[~batch.failed]))
                raise SolverError(plan.name, *where, index[bad], index[~bad], healthy)
            done.append(batch)
            lengths = {len(b.frames) for b in done}
            if trajectory is not None and len(lengths) > 1:
                raise ValueError(f"step_hook stopped batches after {' and '.join(map(str, lengths))} steps: a trajectory needs one length")
            if adaptive or graph:
                bar.update(last - first)
    frames = trajectory is not None and len(done[0].frames) > 0
    return Samples(
        x=torch.cat([b.x for b in done]),
        nfe=torch.cat([b.nfe for b in done]),
        trajectory=torch.cat([torch.stack(b.frames) for b in done], dim=1) if frames else None,
        times=torch.tensor(done[-1].times, dtype=torch.float64) if frames else None,
        failed=torch.cat([b.failed for b in done]),
        fitted=plan.fitted,
        units="normalised" if any(b.stopped for b in done) or plan.final == "state" else "data",
        picked=plan.picked,
    )


def _with_particles(
    model: Denoiser, shape: Sequence[int], solver: str | Solver | None, size: int, given: dict[str, Any], solver_options: dict[str, Any]
) -> Samples:
    """`sample` with `size` particles in the place of each sample, whose rows lie one after the other."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"particles must be a whole number of at least 1, got {size!r}")
    if not isinstance(model, Weighed):
        raise TypeError(f"particles are weighted by a combination of scores (guide with rule 'cfg', Combine), got {type(model).__name__}")
    solver = DEFAULT_SOLVER if solver is None else solver
    if not isinstance(solver, str | Solver):
        raise TypeError(f"solver must be a name or a Solver, got {solver!r}")
    picked: str | None = None
    if solver == AUTO:
        choice = choose_solver(model, given["steps"], options=solver_options, particles=True)
        solver, picked = choice.solver, str(choice)
        if given["progress"] and parallel.rank() == 0:
            print(f"auto: {picked}", file=sys.stderr, flush=True)
    method = make_solver(solver_name(solver), **solver_options) if isinstance(solver, str) else solver
    if not (isinstance(method, FixedStepSolver) and method.reverse_sde):
        able = ", ".join(name for name in SOLVERS if getattr(SOLVERS[name], "reverse_sde", False))
        raise ValueError(f"particles need a fixed-step solver of the reverse SDE ({able}), got {solver!r}")
    if given["graph"] or given["trajectory"] is not None or given["step_hook"] is not None or given["t_start"] is not None:
        raise ValueError("particles go with neither graph, trajectory, step_hook nor t_start")
    count, data_shape = check_shape(shape)
    device, _ = device_and_dtype(model, given["x_init"], given["device"], given["dtype"])
    cond = {name: value.repeat_interleave(size, 0) for name, value in model.conditions(given["cond"], count, device).items()}
    x_init = None if given["x_init"] is None else given["x_init"].repeat_interleave(size, 0)
    loop = Populated(method, size, check_seed(given["seed"]), given["index_offset"])
    rows = given | {"cond": cond, "x_init": x_init, "index_offset": given["index_offset"] * size}
    try:
        out = sample(model, (count * size, *data_shape), loop, **rows)
    except SolverError as error:
        failed = (error.failed // size).unique()
        healthy = torch.tensor([k for k in range(int(error.failed.max()) // size + 1) if k not in set(failed.tolist())], dtype=torch.int64)
        kept = error.x[torch.isin(error.healthy // size, healthy)].reshape(-1, size, *data_shape)
        raise SolverError(type(method).__name__, error.time, error.step, failed, healthy, kept) from None
    log_weights = torch.cat([population.log_weights for population in loop.done])
    return replace(
        out,
        x=out.x.reshape(count, size, *data_shape),
        nfe=out.nfe.reshape(count, size).sum(1),
        failed=out.failed.reshape(count, size).any(1),
        log_weights=log_weights,
        ess=torch.cat([population.ess for population in loop.done]),
        lineages=torch.cat([population.lineages for population in loop.done]),
        evidence_error=torch.cat([population.evidence_error for population in loop.done]),
        picked=picked,
    )


class _Batch:
    """One batch on its way: what is shown and kept of it, and what is made of its state at the end."""

    x: Tensor
    nfe: Tensor
    failed: Tensor

    def __init__(self, model: Denoiser, trajectory: str | None, hook: StepHook | None) -> None:
        self.model, self.trajectory, self.hook = model, trajectory, hook
        self.frames: list[Tensor] = []
        self.times: list[float] = []
        self.stopped = False

    def watcher(self, tick: Callable[[], object] | None) -> Callable[[float, Tensor, Tensor], bool]:
        decode = None if self.model.normalizer is None else self.model.normalizer.decode

        def observe(t: float, x: Tensor, denoised: Tensor) -> bool:
            self.times.append(t)
            if tick is not None:
                tick()
            if self.trajectory == "denoised":
                self.frames.append((denoised if decode is None else decode(denoised)).cpu())
            elif self.trajectory == "states":
                self.frames.append(x.cpu())
            # A copy, so that a hook that edits what it is shown steers no solver: a Wrapper is for that.
            self.stopped = self.hook is not None and self.hook(len(self.times), t, x.clone()) is True
            return self.stopped

        return observe

    def finish(self, run: Run, y: Tensor, plan: Plan, lost: Tensor, limit: Tensor) -> None:
        """Make what was asked for of the state y at the end, and mark what is broken."""
        failed, normalizer = lost, self.model.normalizer
        if plan.final != "state" and not self.stopped:
            if plan.final == "denoise":
                y = run.predict(y, plan.end).denoised
                failed = failed | broken(y, limit)
            else:
                y = y / alpha_at(self.model.sde, plan.end)
            if normalizer is not None:
                y = normalizer.decode(y)
                failed = failed | ~torch.isfinite(largest(y))
        self.x, self.nfe, self.failed = y, run.nfe, failed


def _state(model: Denoiser, x_init: Tensor, t: float, units: str, dtype: torch.dtype) -> Tensor:
    """The state at t that x_init stands for."""
    if units == "normalised":
        return x_init.to(dtype)
    encoded = x_init if model.normalizer is None else model.normalizer.encode(x_init)
    return (encoded * alpha_at(model.sde, t)).to(dtype)


def sample_together(model: Denoiser, shape: Sequence[int], cond: dict[str, Tensor] | None = None, **options: Any) -> Samples:
    """`sample` by all processes of a torchrun, each drawing its share: every one of them gets all the samples, the same that one
    process alone would draw. Without torchrun it is `sample`, whose arguments it takes but for trajectory and step_hook. All processes
    must call it."""
    if shape[0] < parallel.world() or parallel.world() == 1:
        return sample(model, shape, cond=cond, **options)
    if options.get("trajectory") is not None or options.get("step_hook") is not None:
        raise ValueError("sample_together keeps no trajectory and calls no step_hook: use sample in one process")
    rows = parallel.share(shape[0])
    mine = {key: value[rows] for key, value in (cond or {}).items()}
    if options.get("x_init") is not None:
        options["x_init"] = options["x_init"][rows]
    options["index_offset"] = options.get("index_offset", 0) + rows.start
    options["progress"] = options.get("progress", True) and parallel.rank() == 0
    try:
        out = sample(model, (rows.stop - rows.start, *shape[1:]), cond=mine, **options)
    except SolverError as error:
        raise SolverError(error.solver, error.time, error.step, error.failed + rows.start, error.healthy + rows.start, error.x) from None
    names = ("x", "nfe", "failed", "log_weights", "ess", "lineages", "evidence_error")
    found: dict[str, Any] = {name: parallel.gather_rows(getattr(out, name)) for name in names if getattr(out, name) is not None}
    return replace(out, **found)


def _batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + size, count)) for first in range(0, count, size))
