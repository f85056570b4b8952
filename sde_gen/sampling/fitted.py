"""What a fit is: times and weights for one solver, the law that they were fitted for, and where they may be used."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..models.denoiser import Denoiser, Wrapper
from ..networks import Network
from ..sdes import SDE
from ..solvers import FixedStepSolver, make_solver
from ..unknown_numbers import number

FitKey = tuple[str, int, tuple[str, ...], str]
"""Solver, steps, the sorted names of the conditions, and the law's digest, see `law_of`."""
_DIGESTS: WeakKeyDictionary[Denoiser, tuple[Any, str]] = WeakKeyDictionary()
_WRITTEN = (bool, int, float, str, tuple, Tensor, SDE)
_OF_MODULES = {*vars(nn.Module()), "fitted", "measured"}


@dataclass(frozen=True)
class FittedGrid:
    """What `fit_grid` found: `sample(model, ..., solver, steps)` uses it where solver, steps, conditions and the model are these.

    times: (steps + 1,), the last is t_min.
    options: of the solver.
    shifts: added to the solver's table (see FixedStepSolver).
    error, default_error: geometric mean over held-out pilots of the root mean square error against the converged answer,
        fitted and with the default grid, in normalised units.
    conditions: names of the conditions under which it was fitted, sorted; it is used under these alone.
    law: digest of the model that it was fitted to, see `law_of`; it is used for that one alone.
    method: "regression" or "descent", which of them it came from; "default" where neither gained anything.
    nfe: network evaluations of one sample that the fit took, backward passes not among them.
    """

    solver: str
    steps: int
    times: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)
    shifts: tuple[tuple[float, ...], ...] = ()
    error: float = float("nan")
    default_error: float = float("nan")
    conditions: tuple[str, ...] = ()
    law: str = ""
    method: str = "descent"
    nfe: int = 0

    @property
    def key(self) -> FitKey:
        """Under which a model keeps it."""
        return self.solver, self.steps, self.conditions, self.law

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FittedGrid:
        """The inverse of `dataclasses.asdict` after a way through JSON; ValueError for a solver or numbers that make no sense."""
        times, shifts = tuple(map(float, config["times"])), tuple(tuple(map(float, row)) for row in config["shifts"])
        known = {name: number(config.get(name)) for name in ("error", "default_error")}
        fitted = cls(**(config | known | {"times": times, "shifts": shifts, "conditions": tuple(config.get("conditions", ()))}))
        if len(times) != fitted.steps + 1:
            raise ValueError(f"a fitted grid of {fitted.steps} steps has {len(times)} times")
        if not all(math.isfinite(value) for row in (times, *shifts) for value in row):
            raise ValueError("a fitted grid has times and shifts that are finite")
        fitted.make()
        return fitted

    def make(self) -> FixedStepSolver:
        """The solver, ready to run along `times`."""
        solver = make_solver(self.solver, **self.options)
        if not isinstance(solver, FixedStepSolver):
            raise ValueError(f"a fitted grid is for solvers of fixed steps, got {self.solver!r}")
        solver.shifts = self.shifts
        return solver

    @property
    def grid(self) -> Tensor:
        """The times as the solver takes them. `sample` runs them from t_max by itself; handed to it as a grid they would be taken
        to start at the first of them, without what the solver does in closed form before."""
        return torch.tensor(self.times, dtype=torch.float64)


def find_fitted(model: Denoiser, solver: str, steps: int, conditions: Iterable[str] = ()) -> FittedGrid | None:
    """What was fitted to this very model for so many steps of `solver` under the conditions of these names, else None."""
    names = tuple(sorted(conditions))
    if not any(key[:3] == (solver, steps, names) for key in model.fitted):
        return None  # before the weights are read
    found: FittedGrid | None = model.fitted.get((solver, steps, names, law_of(model)))
    return found


def why_not_fitted(model: Denoiser, solver: str, steps: int, conditions: Iterable[str] = ()) -> str:
    """One line: what `find_fitted` has for other models, conditions or steps."""
    names = tuple(sorted(conditions))
    given = f" with {', '.join(names)}" if names else ""
    asked = f"no grid is fitted for solver {solver!r} at {steps} steps{given}"
    same = [key for key in model.fitted if key[:2] == (solver, steps)]
    if any(key[2] == names for key in same):
        return f"{asked}: the one that is kept was fitted to other weights, guidance or process; see fit_grid"
    if any(key[3] == law_of(model) for key in same):
        kept = " and ".join(", ".join(key[2]) or "none" for key in same)
        return f"{asked}: the one that is kept was fitted with other conditions ({kept}); see fit_grid"
    known = ", ".join(dict.fromkeys(f"{key[0]} at {key[1]}" + (f" with {', '.join(key[2])}" if key[2] else "") for key in model.fitted))
    return f"{asked} (fitted: {known or 'none'}); see fit_grid"


def law_of(model: Denoiser) -> str:
    """A digest of what a fit depends on: process and ends, weights, prediction, moments, and what guidance or a measurement sets.

    Wrappers of the same law count as what they wrap. Weights are compared in float32, so that a cast copy of a model is that model.
    What cannot be written down (a function, an object of another class) counts as itself alone: such a fit is found again for the same
    object, and never after it was saved. Of a network that is none of this package's the numbers, words and tensors that its modules hold
    as attributes count too.
    """
    model = _meant(model)
    held = [*model.parameters(), *model.buffers()]
    # A write through `.data` leaves no trace in a tensor's version: the sums tell of it.
    sums = torch.stack([value.detach().double().sum().cpu() for value in held]).tolist() if held else []
    marks = tuple((value.data_ptr(), value._version, repr(total)) for value, total in zip(held, sums, strict=True)), _settings(model)
    known = _DIGESTS.get(model)
    if known is None or known[0] != marks:
        digest = hashlib.sha256(repr(marks[1]).encode())
        for name, value in model.state_dict().items():
            digest.update(name.encode())
            _add(digest, value)
        known = _DIGESTS[model] = marks, digest.hexdigest()
    return known[1]


def _meant(module: Any) -> Any:
    while isinstance(module, Wrapper) and module.same_law:
        module = module.model
    return module


def _add(digest: Any, value: Tensor) -> None:
    value = value.detach().float() if value.is_floating_point() else value.detach()
    digest.update(repr(tuple(value.shape)).encode())
    digest.update(value.cpu().contiguous().numpy().tobytes())


def _settings(model: Denoiser) -> list[Any]:
    """What a model is beside its tensors, and the models in it."""
    settings = getattr(model, "settings", None)
    if callable(settings):
        own = _told(settings())
    else:
        own = [(name, _told(value)) for name, value in sorted(vars(model).items()) if name not in _OF_MODULES]
    inside = [(name, _settings(_meant(child))) for name, child in model.named_children() if isinstance(child, Denoiser)]
    network = getattr(model, "network", None)
    foreign = [] if network is None or isinstance(network, Network) else [_of_network(network)]
    return [type(model).__qualname__, _told(model.sde), own, inside, *foreign]


def _of_network(network: Any) -> list[Any]:
    """What a network of the caller's own is beside its weights: itself alone where it is a plain function."""
    if not isinstance(network, nn.Module):
        return [getattr(network, "__qualname__", type(network).__qualname__), id(network)]
    found = []
    for place, part in network.named_modules():
        values = {name: value for name, value in vars(part).items() if name not in _OF_MODULES and isinstance(value, _WRITTEN)}
        found.append([place, type(part).__qualname__, [(name, _told(value)) for name, value in sorted(values.items())]])
    return found


def _told(value: Any) -> Any:
    """`value` as text and numbers that are the same after a way through a file."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        digest = hashlib.sha256()
        _add(digest, value)
        return digest.hexdigest()
    if isinstance(value, SDE):
        return [type(value).__qualname__, _told(value.settings), value.t_min, value.t_max]
    if isinstance(value, Denoiser):
        return _settings(_meant(value))
    if isinstance(value, Mapping):
        return [(str(key), _told(item)) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))]
    if isinstance(value, Sequence | set | frozenset):
        return [_told(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    return [type(value).__qualname__, id(value)]
