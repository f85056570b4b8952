"""Samples of symbols: from nothing kept to all, by one of several rules, each draw in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..progress import bar as progress_bar
from ..randomness import NoiseStream, check_seed
from ..registry import lookup
from .model import TokenDenoiser
from .process import draw


@dataclass(frozen=True)
class TokenSamples:
    """x: (N, *shape), whole numbers. nfe: network calls of each, (N,)."""

    x: Tensor
    nfe: Tensor


@dataclass
class _Run:
    """A batch on its way: the model, its conditions and where its uniform numbers come from."""

    model: TokenDenoiser
    noise: NoiseStream
    cond: Mapping[str, Tensor]
    steps: int
    tick: Callable[[], object]
    lost: Tensor
    calls: int = 0

    def uniform(self) -> Tensor:
        """Numbers in (0, 1), (B, L)."""
        return torch.special.ndtr(self.noise.draw()).clamp(1e-300, 1 - 2**-53).flatten(1)

    def probabilities(self, x: Tensor, kept: float) -> Tensor:
        """p(x_0 | x_t), (B, L, K), float64."""
        self.calls += self.model.cost
        level = torch.full((len(x),), kept, dtype=torch.float64, device=x.device)
        self.tick()
        found = self.model.log_probabilities(x.reshape(-1, *self.model.shape), level, **self.cond).double().exp()
        self.lost |= torch.isnan(found).any((1, 2))
        return found

    def back(self, x: Tensor, kept: float, more: float) -> Tensor:
        """A draw of p(x_s | x_t) by the exact step of each entry."""
        levels = torch.tensor([[kept], [more]], dtype=torch.float64, device=x.device).expand(-1, len(x))
        return draw(self.model.process.reverse(self.probabilities(x, kept), x, *levels), self.uniform())


Sampler = Callable[[_Run, Tensor], Tensor]


def _ancestral(run: _Run, x: Tensor) -> Tensor:
    for step in range(run.steps):
        x = run.back(x, step / run.steps, (step + 1) / run.steps)
    return x


FIRST_KEPT = 1e-3
"""Tau-leaping starts where this much is kept: the time -log(alpha) to nothing is infinite."""


def _tau_leaping(run: _Run, x: Tensor) -> Tensor:
    process = run.model.process
    rates = process.rates.to(x.device).T
    for step in range(run.steps - 1):
        kept, more = max(FIRST_KEPT, step / run.steps), (step + 1) / run.steps
        level = torch.full((len(x),), kept, dtype=torch.float64, device=x.device)
        flow = rates[x] * process.ratios(run.probabilities(x, kept), x, level) * (more - kept) / kept
        flow = flow.scatter(2, x[..., None], 0.0)
        total = flow.sum(2, keepdim=True)
        leaves = -torch.expm1(-total)
        law = torch.where(total > 0, flow * leaves / total.clamp_min(1e-300), 0.0)
        x = draw(law.scatter(2, x[..., None], 1 - leaves), run.uniform())
    return run.back(x, (run.steps - 1) / run.steps, 1.0)


def _in_order(run: _Run, x: Tensor, sure: bool) -> Tensor:
    """Reveal what is masked, as many entries at each step, in an order that is random or the surest first."""
    mask = run.model.process.symbols
    ranks = run.uniform()
    steps = min(run.steps, int((x == mask).sum(1).max()))  # more would find nothing to reveal
    for step in range(steps):
        hidden = x == mask
        found = run.probabilities(x, 0.0)
        score = found.amax(2) if sure else ranks
        count = -(-hidden.sum(1) // (steps - step))
        place = torch.where(hidden, score, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        x = torch.where(hidden & (place < count[:, None]), draw(found, run.uniform()), x)
    return x


SAMPLERS: dict[str, Sampler] = {
    "ancestral": _ancestral,
    "tau_leaping": _tau_leaping,
    "first_hitting": lambda run, x: _in_order(run, x, False),
    "confidence": lambda run, x: _in_order(run, x, True),
}
"""How x_s follows from x_t; entries that change in one step are drawn independently, which is the error of all of them.

ancestral: each entry by p(x_s | x_t), on levels kept = i/T (Austin et al. 2021, arXiv:2107.03006). Any process.
tau_leaping: the reverse rates at the step's start are held (Campbell et al. 2022, arXiv:2205.14987); the last step is ancestral's. Any
    process, and worse than "ancestral" where that is to be had.
first_hitting: masks are revealed in a random order, L/T of them at a time; exact for T = L and an exact model (Zheng et al. 2024,
    arXiv:2409.02908). Masks alone.
confidence: the same in the order of how sure the model is of its best symbol (Chang et al. 2022, arXiv:2202.04200, without their
    temperature); as exact for T = L, since the order looks at what is shown alone, and with fewer steps of less variety. Masks alone.
"""


@torch.no_grad()
def sample_tokens(
    model: TokenDenoiser,
    count: int,
    sampler: str = "ancestral",
    steps: int | None = None,
    seed: int = 0,
    cond: Mapping[str, Any] | None = None,
    given: Tensor | None = None,
    batch_size: int = 256,
    index_offset: int = 0,
    progress: bool = False,
) -> TokenSamples:
    """Draw `count` items of `model`.

    sampler: a name in SAMPLERS.
    steps: T, network calls. None: as many as an item has entries.
    seed, index_offset: sample i is a function of (seed, index_offset + i) and the settings alone, whatever the batch.
    cond: conditions by name, (count, *) each.
    given: (count, *shape), symbols that are known and -1 where an item is to be filled in. Masked diffusion alone: what is given is simply
        not masked, so that the samples are those of the model given it, with the error of the steps.

    Raises ValueError or TypeError for bad arguments, RuntimeError for a model that gives NaN, in one line.
    """
    rule, process = lookup(SAMPLERS, "token sampler", sampler), model.process
    for name, value, least in (("count", count, 1), ("steps", steps, 1), ("batch_size", batch_size, 1), ("index_offset", index_offset, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if not process.reveals and (given is not None or sampler in ("first_hitting", "confidence")):
        what = "given symbols are" if given is not None else f"sampler {sampler!r} is"
        raise ValueError(f"{what} for a process whose masks show what is not known (absorbing), not {type(process).__name__}")
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    if given is not None and not isinstance(given, Tensor):
        raise TypeError(f"given must be a tensor of whole numbers, got {type(given).__name__}")
    if given is not None and (given.is_floating_point() or given.dtype == torch.bool or tuple(given.shape) != (count, *model.shape)):
        raise ValueError(f"given must be whole numbers of shape {(count, *model.shape)}, got {given.dtype} of shape {tuple(given.shape)}")
    if given is not None and (int(given.min()) < -1 or int(given.max()) >= process.symbols):
        raise ValueError(f"given must hold -1 or symbols 0 .. {process.symbols - 1}, got {int(given.min())} .. {int(given.max())}")
    steps = model.entries if steps is None else steps
    conditions = model.conditions(cond, count, place)
    done, calls = [], []
    with progress_bar(None, f"sampling ({sampler})", "call", progress, leave=False) as bar:
        for first in range(0, count, batch_size):
            last = min(count, first + batch_size)
            noise = NoiseStream(check_seed(seed), index_offset + first, last - first, model.shape, torch.float64, place)
            part = {name: value[first:last] for name, value in conditions.items()}
            run = _Run(model, noise, part, steps, bar.update, torch.zeros(last - first, dtype=torch.bool, device=place))
            x = draw(process.stationary().to(place).expand(last - first, model.entries, -1), run.uniform())
            if given is not None:
                known = given[first:last].flatten(1).to(place)
                x = torch.where(known >= 0, known, x)
            x = rule(run, x)
            if bool(run.lost.any()):  # a draw of NaN would be symbol 0, and look like one
                samples = (run.lost.nonzero().flatten() + index_offset + first).tolist()
                raise RuntimeError(
                    f"the model gave probabilities that are NaN for {len(samples)} samples: {', '.join(map(str, samples[:8]))}"
                )
            done.append(x.reshape(-1, *model.shape))
            calls.append(torch.full((last - first,), run.calls, dtype=torch.int64))
    return TokenSamples(torch.cat(done), torch.cat(calls))
