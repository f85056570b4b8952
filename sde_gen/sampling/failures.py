"""Samples that a solver lost: what counts as lost, and where it was first seen."""

from __future__ import annotations

from torch import Tensor

from ..solvers import Run
from .plan import Plan

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


def largest(x: Tensor) -> Tensor:
    """The largest magnitude in each sample of x (B, *), (B,) float64, since a limit of `GROWTH` overflows narrower dtypes."""
    return x.abs().flatten(1).amax(1).double()


def broken(x: Tensor, limit: Tensor) -> Tensor:
    """Which samples of x (B, *) are not finite or not below their limit (B,)."""
    # Not "largest >= limit", which NaN would pass.
    return ~(largest(x) < limit)


def locate(plan: Plan, run: Run, x: Tensor, lost: Tensor, limit: Tensor) -> tuple[float | None, int | None]:
    """Time and step at which one of the samples `lost` in the loop is first seen broken: the same batch again, watched, since
    a loop that ends well pays nothing for being able to say so."""
    found: list[tuple[float, int]] = []
    taken = 0

    def observe(t: float, state: Tensor, denoised: Tensor) -> bool:
        nonlocal taken
        taken += 1
        # Others may have been out of bounds on their way and come back.
        if bool((broken(state, limit) & lost).any()):
            found.append((t, taken))
        return bool(found)

    run.observer = observe
    plan.method.solve(run, x, plan.start, plan.end, plan.steps, plan.grid)
    if found:
        return found[0]
    if not taken or (plan.method.adaptive and bool(lost.any())):
        return None, None
    return plan.end, taken  # after the last step shown: the denoising call, or what a solver does there unseen
