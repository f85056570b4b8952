"""What predicts symbols: p(x_0 | x_t) of each entry, by a network or in closed form, and what is made of another."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Condition
from ..data.captions import is_texts, text_tensor
from .process import TokenProcess


class TokenDenoiser(nn.Module):
    """Anything that predicts p(x_0 | x_t), entry by entry, along a TokenProcess.

    A subclass gives `predict`. States are integers (B, *shape), of which the process's `symbols` are data; kept (B,) is how much of them
    is kept (see `TokenProcess`); conditions are keyword tensors whose first dimension is the batch.

    process: the corruption.
    shape: of one item.
    """

    cost: int = 1
    """Network evaluations of one `predict`."""

    def __init__(self, process: TokenProcess, shape: Sequence[int]) -> None:
        super().__init__()
        self.process, self.shape = process, tuple(shape)

    @property
    def entries(self) -> int:
        """L, the number of entries of an item."""
        return int(torch.Size(self.shape).numel())

    def conditions(self, cond: Mapping[str, Any] | None, count: int, device: torch.device) -> dict[str, Tensor]:
        """The conditions of `count` items as `predict` takes them; TypeError or ValueError, one line, for others."""
        return check_conditions(self.encoders, cond, count, device)

    @abstractmethod
    def predict(self, x: Tensor, kept: Tensor, **cond: Tensor) -> Tensor:
        """log p(x_0 | x_t = x) of each entry, (B, *shape, K), normalised."""

    @property
    def encoders(self) -> dict[str, Condition]:
        """The conditions that the model takes, by name."""
        return {}

    def null(self, name: str, value: Tensor) -> Tensor | None:
        """Rows of the shape of `value` that stand for the condition `name` not being given; None for a condition that is not known."""
        return self.encoders[name].null(value) if name in self.encoders else None

    def log_probabilities(self, x: Tensor, kept: Tensor, **cond: Tensor) -> Tensor:
        """log p(x_0 | x_t = x), (B, L, K), which is certain where the process says that x_t shows x_0."""
        found = self.predict(x, kept, **cond).reshape(len(x), self.entries, self.process.symbols)
        if not self.process.reveals:
            return found
        flat = x.flatten(1)
        shown = F.one_hot(flat.clamp_max(self.process.symbols - 1), self.process.symbols).to(found).log()
        return torch.where((flat < self.process.symbols)[..., None], shown, found)

    def concrete_score(self, x: Tensor, kept: Tensor, **cond: Tensor) -> Tensor:
        """p_t(b)/p_t(x) where one entry is changed to the state b, (B, *shape, S) (see `TokenProcess.ratios`)."""
        probabilities = self.log_probabilities(x, kept, **cond).double().exp()
        return self.process.ratios(probabilities, x.flatten(1), kept).reshape(*x.shape, -1)


class TokenModel(TokenDenoiser):
    """A network that is shown the states one-hot, (B, S C, *spatial), and gives a logit of each symbol, (B, K C, *spatial).

    network: called as `network(x, c, **cond)`, as every network of a score model. c is half the log-odds of what is kept; where the
        process shows which entries are masked that is counted, so that the model does not depend on time (Ou et al. 2024,
        arXiv:2406.03736) and entries may be given in any number.
    shape: (C, *spatial) of an item; text is (1, L).
    ordered: whether symbols are levels of one quantity. The network then gets one more row of channels, in which they run from -1 to 1,
        and gives two more, the mean and the width of the levels that its logits are added to (`levelled`).
    """

    def __init__(self, network: nn.Module, process: TokenProcess, shape: Sequence[int], ordered: bool = False) -> None:
        super().__init__(process, shape)
        self.network, self.ordered = network, ordered

    @staticmethod
    def channels(process: TokenProcess, shape: Sequence[int], ordered: bool = False) -> tuple[int, int]:
        """The channels of input and output that a network must have."""
        return shape[0] * (process.states + ordered), shape[0] * (process.symbols + 2 * ordered)

    def with_network(self, network: nn.Module) -> TokenModel:
        """The same model around another network: averaged weights, say."""
        return TokenModel(network, self.process, self.shape, self.ordered)

    @property
    def encoders(self) -> dict[str, Condition]:
        return getattr(self.network, "encoders", {})

    def predict(self, x: Tensor, kept: Tensor, **cond: Tensor) -> Tensor:
        symbols = self.process.symbols
        shown = F.one_hot(x, self.process.states).movedim(-1, 1).float()  # (B, S, C, *spatial)
        if self.ordered:
            level = torch.where(x < symbols, 2 * x.float() / (symbols - 1) - 1, 0.0)
            shown = torch.cat((shown, level[:, None]), 1)
        out = self.network(shown.flatten(1, 2), self.clock(x, kept), **cond).float()
        out = out.unflatten(1, (-1, self.shape[0])).movedim(1, -1)
        if self.ordered:
            out = out[..., :symbols] + levelled(out[..., symbols], out[..., symbols + 1], symbols)
        return out.log_softmax(-1)

    def clock(self, x: Tensor, kept: Tensor) -> Tensor:
        """What the network is told of the noise, (B,) in float32."""
        if self.process.reveals:
            kept = (x.flatten(1) < self.process.symbols).double().mean(1)
        edge = 0.5 / self.entries
        return (0.5 * torch.log((kept.double() + edge) / (1 - kept.double() + edge))).float()


def check_conditions(
    encoders: Mapping[str, Condition], cond: Mapping[str, Any] | None, count: int, device: torch.device
) -> dict[str, Tensor]:
    found = {}
    for name, value in (cond or {}).items():
        if name not in encoders:
            raise ValueError(f"this model takes no condition {name!r}; it takes {', '.join(encoders) or 'none'}")
        value = text_tensor(value) if is_texts(value) else torch.as_tensor(value)
        if tuple(value.shape[:1]) != (count,):
            raise ValueError(f"condition {name!r} must have first dimension {count}, got shape {tuple(value.shape)}")
        found[name] = encoders[name].check(value).to(device)
    return found


def levelled(mean: Tensor, log_width: Tensor, symbols: int) -> Tensor:
    """Log-densities of a normal law at the levels 0 .. K - 1 scaled to [-1, 1], up to a constant: (*) gives (*, K).

    The width is exp(log_width) of the whole range.
    """
    levels = torch.linspace(-1, 1, symbols, device=mean.device)
    return -0.5 * ((levels - mean[..., None]) / (2 * log_width[..., None].clamp(-6, 6).exp())) ** 2


class Law(Protocol):
    """A law of sequences whose posteriors are known, as `exact.markov.MarkovChain`."""

    symbols: int
    shape: tuple[int, ...]

    def posterior(self, evidence: Tensor) -> Tensor: ...


class ExactTokens(TokenDenoiser):
    """p(x_0 | x_t) of a law that is known: the judge of bounds and samplers."""

    def __init__(self, law: Law, process: TokenProcess) -> None:
        if law.symbols != process.symbols:
            raise ValueError(f"the law has {law.symbols} symbols and the process {process.symbols}")
        super().__init__(process, law.shape)
        self.law = law

    def predict(self, x: Tensor, kept: Tensor, **cond: Tensor) -> Tensor:
        level = torch.full_like(kept, 0.5) if self.process.reveals else kept  # of what is shown, any level says the same
        return self.law.posterior(self.process.likelihoods(x.flatten(1), level)).log()


class GuidedTokens(TokenDenoiser):
    """log p_null + w (log p_cond - log p_null), normalised entry by entry: guidance without a classifier, for symbols.

    strength: w; 1 is the conditional model, 0 the one without the conditions.
    drop: the conditions that are left out in the second branch; None: all.
    Ho and Salimans 2022, arXiv:2207.12598; Schiff et al. 2024, arXiv:2412.10193. The law that it samples is its own: no bound is one of
    p(x | c)^w.
    """

    def __init__(self, model: TokenDenoiser, strength: float, drop: Sequence[str] | None = None) -> None:
        super().__init__(model.process, model.shape)
        self.model, self.strength = model, float(strength)
        if self.strength != self.strength or abs(self.strength) == float("inf"):
            raise ValueError(f"strength must be finite, got {strength!r}")
        unknown = sorted(set(drop or ()) - set(model.encoders))
        if unknown or not model.encoders:
            raise ValueError(
                f"this model takes no condition {', '.join(unknown) or 'to be guided by'}; it takes {', '.join(model.encoders) or 'none'}"
            )
        self.drop = tuple(model.encoders if drop is None else drop)
        self.cost = 2 * model.cost

    @property
    def encoders(self) -> dict[str, Condition]:
        return self.model.encoders

    def predict(self, x: Tensor, kept: Tensor, **cond: Tensor) -> Tensor:
        null = {name: self.encoders[name].null(value) if name in self.drop else value for name, value in cond.items()}
        both = {name: torch.cat((value, null[name])) for name, value in cond.items()}
        with_, without = self.model.predict(torch.cat((x, x)), torch.cat((kept, kept)), **both).chunk(2)
        return torch.lerp(without, with_, self.strength).log_softmax(-1)
