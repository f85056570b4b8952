"""Sampling: seeds, batches, conditions, failures and trajectories around a solver."""

from __future__ import annotations

import operator
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import memory, parallel
from ..models.score import Denoiser
from ..randomness import NoiseStream, check_seed
from ..registry import lookup
from ..solvers import GRIDS, FixedStepSolver, Graphed, Run, Solver, make_solver

StepHook = Callable[[int, float, Tensor], bool | None]

GROWTH = 2.0**53
"""A sample that grows by more than this, over its own start and the prior's scale, has failed: its start is then below the last
bit of float64 and nothing of it is left. The paths x_t = alpha x_0 + sigma eps ask for a growth of about 1/alpha(t_max), under
1e5 by default, in any units of the data. A finite sample below the bound is not judged."""


class SolverError(RuntimeError):
    """A solver met states that are not finite or grew absurdly (see `GROWTH`), or reached its step cap.

    `solver`, `time`, `step`: where it was first seen (time and step are None where the solver reached its step cap or does
    not say); `failed`: indices of the samples concerned; `healthy`: indices of the others and `x` their states, finished.
    """

    def __init__(self, solver: str, time: float | None, step: int | None, failed: Tensor, healthy: Tensor, x: Tensor) -> None:
        self.solver, self.time, self.step = solver, time, step
        self.failed, self.healthy, self.x = failed, healthy, x
        shown = ", ".join(map(str, failed[:8].tolist())) + (", ..." if len(failed) > 8 else "")
        where = "" if time is None else f" first at t = {time:.6g} (step {step})"
        super().__init__(
            f"solver {solver!r} failed for {len(failed)} of {len(failed) + len(healthy)} samples{where}: samples {shown} are not "
            "finite, grew absurdly or did not finish within the step cap; on_failure='mask' returns the others"
        )


@dataclass(frozen=True)
class Samples:
    """What `sample` returns.

    x: (N, *shape), in the data's own units where sampling ended at t_min, else the state in normalised units;
    nfe: network calls for each sample, counted, (N,); trajectory: (K, N, *shape) or None; times: (K,) of the trajectory;
    failed: (N,) bool, the samples that are not to be used; fitted: whether a grid of `fit_grid` was used.
    """

    x: Tensor
    nfe: Tensor
    trajectory: Tensor | None
    times: Tensor | None
    failed: Tensor
    fitted: bool = False


@torch.no_grad()
def sample(
    model: Denoiser,
    shape: Sequence[int],
    solver: str | Solver = "pc",
    steps: int | None = None,
    seed: int = 0,
    x_init: Tensor | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    cond: dict[str, Tensor] | None = None,
    batch_size: int | None = None,
    index_offset: int = 0,
    final: str = "denoise",
    trajectory: str | None = None,
    step_hook: StepHook | None = None,
    on_failure: str = "raise",
    progress: bool = True,
    grid: str | Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    graph: bool = False,
    **solver_options: Any,
) -> Samples:
    """Draw `shape` = (N, *data shape) samples of `model`.

    solver: a registered name with `solver_options`, or a Solver; steps: of the grid, for an adaptive solver the cap on
        attempted steps (None: the solver's default, or as many as `grid` has); grid: a name in GRIDS, the times (steps + 1,), or
        "fitted" (None: what `fit_grid` found for this solver and steps, else the solver's default).
    seed, index_offset: sample i's noise is a function of (seed, index_offset + i) alone, whatever the batch.
    x_init: the state at t_start instead of a draw of the prior; data in its own units where t_start is t_min.
    t_start, t_end: from and to which time (None: from t_max to t_min). Data lives at t_min in its own units; states above
        are in normalised units.
    cond: keyword tensors for the network, first dimension N.
    final: at t_min, "denoise" returns E[x_0 | x] by one more network call, "raw" the state itself.
    trajectory: None, "states" (x along the way, normalised units) or "denoised" (E[x_0 | x_t], the data's units): shown
        at the end of each step, kept on the CPU.
    step_hook: called as hook(step, t, x) after each step; True stops that batch there.
    on_failure: "raise" a SolverError that carries the healthy samples, or "mask": return all, marked in `failed`.
    progress: a bar on a terminal. dtype, device: of the states (None: the model's parameters', else float32 on the CPU).
    graph: capture the loop of a fixed-step solver as a CUDA graph and replay it for each batch from the second of a size on;
        the same samples. Ignored on other devices, and where step_hook or trajectory watches.

    Raises ValueError or TypeError for bad arguments, SolverError for samples that are not finite,
    grew absurdly (see `GROWTH`) or did not finish within the step cap of an adaptive solver.
    """
    count, data_shape = _check_shape(shape)
    fitted = None
    if isinstance(solver, str):
        name, method = solver, make_solver(solver, **solver_options)
        number = method.default_steps if steps is None else steps
        asked = isinstance(grid, str) and grid == "fitted"
        if not solver_options and (asked or grid is t_start is t_end is None):
            fitted = model.fitted.get((name, number))
        if asked and fitted is None:
            known = ", ".join(" at ".join(map(str, key)) for key in model.fitted) or "none"
            raise ValueError(f"no grid is fitted for solver {name!r} at {number} steps with these options (fitted: {known}); see fit_grid")
        if fitted is not None:
            method, grid = fitted.make(), fitted.grid
    elif isinstance(solver, Solver):
        if solver_options:
            raise ValueError(f"options {', '.join(solver_options)} belong to a solver given by name")
        name, method = type(solver).__name__, solver
    else:
        raise TypeError(f"solver must be a name or a Solver, got {solver!r}")
    if graph and not isinstance(method, FixedStepSolver):
        raise ValueError(f"graph=True captures the loop of a fixed-step solver, and {name!r} is none")
    _choose("final", final, ("denoise", "raw"))
    _choose("on_failure", on_failure, ("raise", "mask"))
    if trajectory not in (None, "states", "denoised"):
        raise ValueError(f"unknown trajectory {trajectory!r}; choose from None, states, denoised")
    check_seed(seed)
    if steps is None:
        steps = len(grid) - 1 if isinstance(grid, Tensor) and grid.ndim == 1 and len(grid) > 1 else method.default_steps
    batch_size = count if batch_size is None else batch_size
    for label, number, least in (("steps", steps, 1), ("batch_size", batch_size, 1), ("index_offset", index_offset, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{label} must be a whole number of at least {least}, got {number!r}")
    grid = method.default_grid if grid is None else grid
    if not isinstance(grid, Tensor):
        lookup(GRIDS, "grid", grid)
    elif grid.shape != (steps + 1,) or not grid.is_floating_point() or not bool((grid.diff() * (grid[-1] - grid[0]) > 0).all()):
        raise ValueError(f"times must be {steps + 1} numbers that only rise or only fall, got shape {tuple(grid.shape)}")
    elif fitted is None:
        if t_start is not None or t_end is not None:
            raise ValueError("t_start and t_end are the ends of the times in grid: leave them out")
        t_start, t_end, grid = float(grid[0]), float(grid[-1]), grid.detach().to("cpu", torch.float64)
    sde = model.sde
    start, end = (sde.t_max if t_start is None else float(t_start)), (sde.t_min if t_end is None else float(t_end))
    for label, value in (("t_start", start), ("t_end", end)):
        if not sde.t_min <= value <= sde.t_max:
            raise ValueError(f"{label} must be in [t_min, t_max] = [{sde.t_min:.6g}, {sde.t_max:.6g}], got {value!r}")
    if start == end:
        raise ValueError(f"t_start and t_end must differ, both are {start!r}")
    if start < end and method.stochastic:
        raise ValueError(f"solver {name!r} runs from noise to data only: t_end must be below t_start, got {start!r} to {end!r}")
    cond = cond or {}
    for key, tensor in cond.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"condition {key!r} must be a tensor, got {type(tensor).__name__}")
        if tensor.shape[:1] != (count,):
            raise ValueError(f"condition {key!r} must have first dimension {count}, got shape {tuple(tensor.shape)}")
    if x_init is not None and not isinstance(x_init, Tensor):
        raise TypeError(f"x_init must be a tensor, got {type(x_init).__name__}")
    if x_init is not None and tuple(x_init.shape) != (count, *data_shape):
        raise ValueError(f"x_init must have shape {(count, *data_shape)}, got {tuple(x_init.shape)}")
    device, dtype = _where(model, x_init, device, dtype)

    states: list[Tensor] = []
    calls: list[Tensor] = []
    frames: list[Tensor] = []
    failures: list[Tensor] = []
    times: list[float] = []
    batches = deque(_batches(count, batch_size))
    loop = Graphed(method) if graph and isinstance(method, FixedStepSolver) else method
    # A fixed-step solver shows its steps; an adaptive one, whose samples go at their own pace, and a graph, their finished batches.
    total, unit = (count, "sample") if method.adaptive or graph else (steps * len(batches), "step")
    with tqdm(total=total, desc=f"sampling ({name})", unit=unit, disable=None if progress else True, leave=False) as bar:
        while batches:
            first, last = batches.popleft()
            part = {key: tensor[first:last].to(device) for key, tensor in cond.items()}
            noise = NoiseStream(seed, index_offset + first, last - first, data_shape, dtype, device)
            z = noise.draw()  # always drawn, so that the later draws are the same with and without x_init
            if x_init is None:
                x = model.prior.from_noise(z)
            else:
                x = x_init[first:last].to(device=device, dtype=dtype)
                if start == sde.t_min and model.normalizer is not None:
                    x = model.normalizer.encode(x)
            run = Run(model, noise, torch.zeros(last - first, dtype=torch.int64, device=device), part)
            kept: list[Tensor] = []
            tick = None if method.adaptive or graph or bar.disable else bar.update
            if trajectory is not None or step_hook is not None or tick is not None:
                times = []
                run.observer = _watcher(model, trajectory, step_hook, kept, times, tick)
            limit = GROWTH * _size(x).clamp_min(max(1.0, sde.prior_std))
            try:
                y = loop.solve(run, x, start, end, steps, grid)
            except (RuntimeError, MemoryError) as error:
                if not memory.out_of_memory(error) or last - first == 1:
                    raise
                memory.release()
                half = (last - first + 1) // 2
                warnings.warn(f"out of memory: going on with batches of {half} (batch_size={half} starts so)", stacklevel=3)
                batches = deque((begin, min(begin + half, count)) for begin in range(first, count, half))
                continue
            failed = lost = _broken(y, limit)
            # A hook may have stopped above t_min, where the state is neither data nor to be decoded.
            if (times[-1] if times else end) == sde.t_min:
                if final == "denoise":
                    y = model.predict(y, end, **part)[0]
                    run.nfe += 1
                    failed = failed | _broken(y, limit)
                if model.normalizer is not None:
                    y = model.normalizer.decode(y)
                    failed = failed | ~torch.isfinite(_size(y))
            if bool(failed.any()) and on_failure == "raise":
                again = NoiseStream(seed, index_offset + first, last - first, data_shape, dtype, device)
                again.draw()
                rerun = Run(model, again, torch.zeros_like(run.nfe), part)
                where = _locate(method, rerun, x, start, end, steps, grid, lost, limit)
                index, bad = torch.arange(last), torch.cat((torch.zeros(first, dtype=torch.bool), failed.cpu()))
                raise SolverError(name, *where, index[bad], index[~bad], torch.cat((*states, y[~failed])))
            states.append(y)
            calls.append(run.nfe)
            failures.append(failed)
            if trajectory is not None:
                if frames and len(kept) != len(frames[0]):
                    raise ValueError(
                        f"step_hook stopped batches after {len(frames[0])} and {len(kept)} steps: a trajectory needs one length"
                    )
                frames.append(torch.stack(kept))
            if method.adaptive or graph:
                bar.update(last - first)
    return Samples(
        x=torch.cat(states),
        nfe=torch.cat(calls),
        trajectory=torch.cat(frames, dim=1) if frames else None,
        times=torch.tensor(times, dtype=torch.float64) if frames else None,
        failed=torch.cat(failures),
        fitted=fitted is not None,
    )


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
    x, nfe, failed = (parallel.gather_rows(rows) for rows in (out.x, out.nfe, out.failed))
    return replace(out, x=x, nfe=nfe, failed=failed)


def _check_shape(shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    try:
        numbers = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"shape must be (N, *data shape) in whole numbers, got {shape!r}") from None
    if len(numbers) < 2 or min(numbers) < 1:
        raise ValueError(f"shape must be (N, *data shape) with positive entries, got {tuple(shape)}")
    return numbers[0], numbers[1:]


def _choose(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; choose from {', '.join(allowed)}")


def _where(
    model: Denoiser, x_init: Tensor | None, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    like = next((p for p in model.parameters() if p.is_floating_point()), x_init)
    if device is None:
        device = torch.device("cpu") if like is None else like.device
    if dtype is None:
        dtype = torch.float32 if like is None else like.dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating one, got {dtype}")
    return torch.device(device), dtype


def _batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + size, count)) for first in range(0, count, size))


def _watcher(
    model: Denoiser,
    trajectory: str | None,
    hook: StepHook | None,
    kept: list[Tensor],
    times: list[float],
    tick: Callable[[], object] | None,
) -> Callable[[float, Tensor, Tensor], bool]:
    def observe(t: float, x: Tensor, denoised: Tensor) -> bool:
        times.append(t)
        if tick is not None:
            tick()
        if trajectory == "denoised":
            kept.append((denoised if model.normalizer is None else model.normalizer.decode(denoised)).cpu())
        elif trajectory == "states":
            kept.append(x.cpu())
        return hook is not None and hook(len(times), t, x) is True

    return observe


def _size(x: Tensor) -> Tensor:
    # The largest magnitude in each sample, (B, *) gives (B,); float64, since the limit overflows narrower dtypes.
    return x.abs().flatten(1).amax(1).double()


def _broken(x: Tensor, limit: Tensor) -> Tensor:
    # Not "size >= limit", which NaN would pass.
    return ~(_size(x) < limit)


def _locate(
    method: Solver, run: Run, x: Tensor, start: float, end: float, steps: int, grid: str | Tensor, lost: Tensor, limit: Tensor
) -> tuple[float | None, int | None]:
    """Time and step at which one of the samples `lost` in the loop is first seen broken: the same batch again, watched, since
    a loop that ends well pays nothing for being able to say so."""
    found: list[tuple[float, int]] = []
    taken = 0

    def observe(t: float, state: Tensor, denoised: Tensor) -> bool:
        nonlocal taken
        taken += 1
        # Others may have been out of bounds on their way and come back.
        if bool((_broken(state, limit) & lost).any()):
            found.append((t, taken))
        return bool(found)

    run.observer = observe
    method.solve(run, x, start, end, steps, grid)
    if found:
        return found[0]
    if not taken or (method.adaptive and bool(lost.any())):
        return None, None
    return end, taken  # after the last step shown: the denoising call, or what a solver does there unseen
