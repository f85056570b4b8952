"""Linear combinations of scores, and the two branches that most rules of guidance combine."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.captions import is_texts, text_tensor
from ..models.combination import ScoreCombination
from ..models.denoiser import Denoiser, PlannedTime, Prediction, Wrapper, like
from ..models.moments import Moments
from ..sdes import SDE
from ..sdes.base import as_time
from ..shapes import expand_as

Cond = dict[str, Tensor]


def predict_each(model: Denoiser, x: Tensor, t: Tensor | float, conds: Sequence[Cond]) -> list[Prediction]:
    """What `model` predicts at x (B, *) under each of `conds`, in one call of it where it can be told that a condition is not given
    (see `Denoiser.null`), else in one call for each."""
    rows = [_filled(model, cond, conds) for cond in conds]
    if len(conds) == 1 or any(row is None for row in rows):
        return [model.predict(x, t, **cond) for cond in conds]
    count = len(conds)
    together = {name: _stacked(model, name, [row[name] for row in rows if row is not None]) for name in rows[0] or {}}
    times = t.repeat(count) if isinstance(t, Tensor) and t.ndim else t
    found = model.predict(x.repeat(count, *[1] * (x.ndim - 1)), times, **together)
    fractions = [None] * count if found.variance_fraction is None else found.variance_fraction.chunk(count)
    return [Prediction(denoised, fraction) for denoised, fraction in zip(found.denoised.chunk(count), fractions, strict=True)]


def _stacked(model: Denoiser, name: str, values: Sequence[Tensor]) -> Tensor:
    """Values (B, *) of a condition one after the other, texts and sequences of unlike lengths filled up with places that are not there."""
    longest = max(value.shape[1] if value.ndim > 1 else 0 for value in values)
    if any(value.ndim == 3 and value.shape[1] < longest for value in values):
        encoder = model.encoders[name]
        rows = [encoder.null(value.new_zeros(len(value), longest - value.shape[1], *value.shape[2:])) for value in values]
        values = [torch.cat([value, row], dim=1) for value, row in zip(values, rows, strict=True)]
    return torch.cat(list(values))


def _filled(model: Denoiser, cond: Cond, conds: Sequence[Cond]) -> Cond | None:
    """`cond` with nulls for what only others of `conds` have, in one order of names; None where the model has no such nulls."""
    found: Cond = {}
    for name in sorted({name for other in conds for name in other}):
        known = next(other[name] for other in conds if name in other)
        value = cond[name] if name in cond else model.null(name, known)
        if value is None:
            return None
        found[name] = value
    return found


class Combine(ScoreCombination):
    """The score sum_i a_i grad log p_t(x | cond_i) of the models i, which all lie along one SDE.

    It is the score of prod_i p_i^(a_i) at t_min alone: further up, the noised product is not the product of the noised
    (`sample(..., particles=K)` reaches the product). A product of
    two models is [(1, a), (1, b)], a negative condition [(w, model), (1 - w, model, {"label": 3})], classifier-free guidance
    [(w, model), (1 - w, model, {})].

    terms: (weight, model) or (weight, model, cond). Without cond, or with None, a model is given what `sample` is given; a mapping takes
        its place, of values for all samples: tensors of first dimension 1, or numbers.
    moments: of the law that is sampled, in normalised units, where they are known.

    The first term's model gives normaliser, data_std and the learned variance. Models that are the same object are asked in one call.
    Raises ValueError for no terms, weights that are not finite, or models along different SDEs. Liu et al. 2022, arXiv:2206.01714.
    """

    def __init__(self, terms: Sequence[tuple[Any, ...]], moments: Moments | None = None) -> None:
        form = "a term is (weight, model) or (weight, model, cond) with a number and a Denoiser"
        for term in terms:
            if not isinstance(term, Sequence) or len(term) not in (2, 3):
                raise TypeError(f"{form}, got {type(term).__name__}{f' of {len(term)}' if isinstance(term, Sequence) else ''}")
        parts = [(*term, None)[:3] for term in terms]
        if not parts:
            raise ValueError("Combine takes at least one term (weight, model, cond), got none")
        for weight, model, _ in parts:
            if not isinstance(model, Denoiser) or isinstance(weight, bool) or not isinstance(weight, int | float):
                raise TypeError(f"{form}, got ({type(weight).__name__}, {type(model).__name__})")
            if not math.isfinite(weight):
                raise ValueError(f"weights must be finite, got {weight!r}")
            if not same_path(model.sde, parts[0][1].sde):
                raise ValueError(f"all models must lie along one SDE, got {parts[0][1].sde!r} and {model.sde!r}")
        super().__init__(parts[0][1], moments)
        self.weights = [float(weight) for weight, _, _ in parts]
        self.models = nn.ModuleList([model for _, model, _ in parts])
        self.given = [None if cond is None else _fixed(cond, model) for _, model, cond in parts]
        self.cost = sum(model.cost for _, model, _ in parts)
        self.depends_on_state = any(model.depends_on_state for _, model, _ in parts)

    def prepare(self, times: Sequence[PlannedTime]) -> None:
        for model in _distinct(self.models):
            model.prepare(times)

    def conditions(self, cond: Mapping[str, Any] | None, count: int, device: torch.device) -> Cond:
        found: Cond = {}
        for model, given in zip(self.models, self.given, strict=True):
            checked = model.conditions(cond if given is None else _rows(given, count), count, device)  # type: ignore[operator]
            found |= checked if given is None else {}
        if cond and not found:
            raise ValueError(f"all terms have conditions of their own: condition {', '.join(map(repr, cond))} would reach none of them")
        return found

    def cost_at(self, t: float) -> int:
        return sum(model.cost_at(t) for model in self.models)  # type: ignore[operator]

    def predict_terms(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> list[tuple[float, Prediction]]:
        """Each term's weight and what its model predicts."""
        asked = [cond if given is None else {n: v.to(x.device) for n, v in _rows(given, len(x)).items()} for given in self.given]
        found: dict[int, Prediction] = {}
        for model in _distinct(self.models):
            places = [k for k, other in enumerate(self.models) if other is model]
            found |= dict(zip(places, predict_each(model, x, t, [asked[k] for k in places]), strict=True))
        return [(weight, found[k]) for k, weight in enumerate(self.weights)]


def _distinct(models: Any) -> list[Any]:
    return list({id(model): model for model in models}.values())


def _fixed(cond: Mapping[str, Any], model: Denoiser) -> Cond:
    """Conditions of a term, each a tensor with first dimension 1; of a text its words' numbers, for it is read once."""
    found = {}
    for name, value in cond.items():
        if isinstance(value, str) or is_texts(value):
            value = text_tensor([value] if isinstance(value, str) else value)
            value = model.encoders[name].check(value) if name in model.encoders else value
        tensor = torch.as_tensor(value)
        tensor = tensor[None] if tensor.ndim == 0 else tensor
        if len(tensor) != 1:
            raise ValueError(
                f"condition {name!r} of a term holds for all samples: it must be a number or (1, *), got {tuple(tensor.shape)}"
            )
        found[name] = tensor
    return found


def _rows(cond: Cond, count: int) -> Cond:
    return {name: value.expand(count, *value.shape[1:]) for name, value in cond.items()}


class Guided(Wrapper):
    """A model pushed from a null branch towards a conditional one; a rule of guidance gives `push`.

    The null branch is the model without the conditions `drop`, or another model `against` with all of them.
    strength 1 is the conditional model and strength 0 the null branch, to the bit, and each then asks only the one that it is.

    strength: finite.
    drop: names of conditions that the null branch is not given; None: all. It must be empty, or None, beside `against`.
    interval: (low, high) in half log-SNR, outside of which the conditional branch is taken alone, by half the calls in a fixed-step
        solver (Kynkaanniemi et al. 2024, arXiv:2404.07724); None: everywhere.
    against: the other model, along the same SDE.

    The variance that a model predicts is the conditional branch's. Samples of it follow no law that is known; see `Combine`.
    Raises ValueError for a strength that is not finite, an interval that is empty the wrong way round, or where nothing is to be dropped.
    """

    same_law = False
    plain_at_one: bool = True
    """Whether strength 1 is the conditional model."""
    by_steps: bool = False
    """Whether the rule depends on the solver's steps, which have to be planned."""

    def __init__(
        self,
        model: Denoiser,
        strength: float,
        drop: Sequence[str] | None = None,
        interval: tuple[float, float] | None = None,
        against: Denoiser | None = None,
    ) -> None:
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
            raise ValueError(f"strength must be a finite number (1: the conditional model, 0: the null branch), got {strength!r}")
        if isinstance(drop, str):
            raise ValueError(f"drop is a sequence of names, such as ({drop!r},), got {drop!r}")
        if against is not None and drop:
            raise ValueError(f"drop and against are two null branches, give one of them, got {list(drop)} and {type(against).__name__}")
        if interval is not None and not (isinstance(interval, Sequence) and len(interval) == 2 and interval[0] <= interval[1]):
            raise ValueError(f"interval must be (low, high) in half log-SNR with low <= high, got {interval!r}")
        self.plain = self.plain_at_one and strength == 1
        self.same_law = self.plain  # the conditional model, of which all is known that was
        super().__init__(model)
        if against is not None and not same_path(against.sde, model.sde):
            raise ValueError(f"against must lie along the model's SDE, {model.sde!r}, got {against.sde!r}")
        self.strength, self.interval, self.against = float(strength), interval, against
        self.drop = None if drop is None else tuple(drop)
        self.other = model if against is None else against
        both = self.model.cost + self.other.cost
        self.cost = model.cost if self.plain else self.other.cost if self.strength == 0 and interval is None else both

    @abstractmethod
    def push(self, x: Tensor, t: Tensor | float, cond: Tensor, null: Tensor) -> Tensor:
        """The guided E[x_0 | x_t] from that of the two branches, all of x's shape (B, *)."""

    def prepare(self, times: Sequence[PlannedTime]) -> None:
        self.model.prepare(times)
        if self.against is not None:
            self.against.prepare(times)

    def conditions(self, cond: Mapping[str, Any] | None, count: int, device: torch.device) -> Cond:
        found = super().conditions(cond, count, device)
        if self.against is None:
            self._kept(found)
        else:
            self.against.conditions(cond, count, device)
        return found

    def _kept(self, cond: Cond) -> Cond:
        """The conditions of the null branch; ValueError where that is the conditional branch."""
        missing = [name for name in self.drop or () if name not in cond]
        if missing or not cond:
            what = f"condition {', '.join(map(repr, missing))}" if missing else "conditions"
            raise ValueError(f"guidance drops {what}, and none was given (cond={{...}})")
        return {name: value for name, value in cond.items() if self.drop is not None and name not in self.drop}

    def inside(self, t: Tensor | float) -> Tensor:
        """Whether guidance is on at t, of the shape of t."""
        if self.interval is None:
            return torch.ones_like(as_time(t), dtype=torch.bool)
        lambda_ = self.sde.half_log_snr(as_time(t))
        return (lambda_ >= self.interval[0]) & (lambda_ <= self.interval[1])

    def cost_at(self, t: float) -> int:
        if self.plain or not bool(self.inside(float(t))):
            return self.model.cost_at(t)
        return self.other.cost_at(t) + (0 if self.strength == 0 else self.model.cost_at(t))

    def planned_for(self, t: Tensor | float, needs: str) -> Any:
        """What `prepare` left at t, or None at t_min, where samples are denoised after the last step; ValueError `needs` at any other
        time that no solver has planned."""
        if isinstance(t, PlannedTime) and self in t.plans:
            return t.plans[self]
        if isinstance(t, Tensor) or float(t) != self.sde.t_min:
            raise ValueError(needs)
        return None

    def branches(self, x: Tensor, t: Tensor | float, cond: Cond) -> tuple[Prediction | None, Prediction | None]:
        """What the conditional and the null branch predict; None for one that is not asked, and whose weight is 0."""
        each = isinstance(t, Tensor)  # a time for each sample, some inside the interval and some not
        if self.plain or not (each or bool(self.inside(float(t)))):
            return self.model.predict(x, t, **cond), None
        kept = cond if self.against is not None else self._kept(cond)
        if self.strength == 0 and not (each and self.interval is not None):
            return None, self.other.predict(x, t, **kept)
        if self.against is not None:
            return self.model.predict(x, t, **cond), self.against.predict(x, t, **kept)
        first, null = predict_each(self.model, x, t, [cond, kept])
        return first, null

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        each = isinstance(t, Tensor)
        first, null = self.branches(x, t, cond)
        if first is None or null is None:
            alone = null if first is None else first
            assert alone is not None
            return alone
        pushed = null.denoised if self.strength == 0 else self.push(x, t, first.denoised, null.denoised)
        if each and self.interval is not None:
            pushed = torch.where(expand_as(self.inside(t).to(x.device).expand(len(x)), x), pushed, first.denoised)
        return Prediction(pushed, first.variance_fraction)


def same_path(a: SDE, b: SDE) -> bool:
    """Whether two processes have the same alpha and sigma between the same ends: states of one are then states of the other."""
    if a is b:
        return True
    if (a.t_min, a.t_max) != (b.t_min, b.t_max):
        return False
    times = torch.linspace(a.t_min, a.t_max, 33, dtype=torch.float64)
    return all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(a.marginal(times), b.marginal(times), strict=True))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B, *) and (B, *) to (B, 1, ...), ready to multiply them."""
    return expand_as((a * b).flatten(1).sum(1), a)


def flow_of(model: Denoiser, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """(a, b) with the flow's velocity = a x + b D."""
    alpha, _ = model.sde.marginal(as_time(t))
    f, slope = model.sde.slopes(as_time(t))
    return like(f - slope, x), like(slope * alpha, x)
