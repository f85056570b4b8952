"""How symbols are corrupted: continuous-time Markov chains on each entry alone, seen through how much of it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import build


class TokenProcess(ABC):
    """q(x_t | x_0) of symbols 0 .. K - 1, each entry on its own, among S states of which the first K are the symbols.

    The noise level is `kept` = alpha(t), which falls from 1 (the data) to 0 (the stationary law): the chain with rates R runs for the
    time -log kept, so that q(x_t = b | x_0 = a) = expm(-log(kept) R)[a, b]. How alpha falls with t is a choice of the grid alone.
    Austin et al. 2021, arXiv:2107.03006; Campbell et al. 2022, arXiv:2205.14987.

    symbols: K, at least 2.
    states: S.
    reveals: whether an entry of x_t that is a symbol is that of x_0.
    rates: R, (S, S) in float64, the rate from a row's state to a column's; rows sum to 0, and the slowest decay is exp(-time).
    """

    reveals: bool = False

    def __init__(self, symbols: int) -> None:
        if isinstance(symbols, bool) or not isinstance(symbols, int) or symbols < 2:
            raise ValueError(f"symbols must be a whole number of at least 2, got {symbols!r}")
        self.symbols = self.states = symbols

    @property
    @abstractmethod
    def rates(self) -> Tensor: ...

    @abstractmethod
    def transition(self, kept: Tensor) -> Tensor:
        """q(x_t = b | x_s = a), (*, S, S), where alpha(t)/alpha(s) = kept (*)."""

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"symbols": self.symbols}

    def stationary(self) -> Tensor:
        """The law of an entry of which nothing is kept, (S,)."""
        return self.transition(torch.zeros((), dtype=torch.float64))[0]

    def corrupt(self, x: Tensor, kept: Tensor, uniform: Tensor) -> Tensor:
        """x_t for x (B, *), kept (B,) and uniform numbers in (0, 1) of x's shape."""
        law = self.transition(kept)[torch.arange(len(x), device=x.device)[:, None], x.flatten(1)]
        return draw(law, uniform.flatten(1)).reshape(x.shape)

    def likelihoods(self, x: Tensor, kept: Tensor) -> Tensor:
        """q(x_t = x | x_0 = c) for every symbol c: x (B, L), kept (B,) give (B, L, K)."""
        columns = self.transition(kept)[:, : self.symbols].transpose(1, 2)
        return columns[torch.arange(len(x), device=x.device)[:, None], x]

    def ratios(self, probabilities: Tensor, x: Tensor, kept: Tensor) -> Tensor:
        """The concrete score p_t(b)/p_t(x), where one entry is changed to b: (B, L, S).

            sum_c p(x_0 = c | x_t) q(b | c)/q(x | c)

        probabilities: p(x_0 | x_t) of each entry, (B, L, K).
        Lou et al. 2024, arXiv:2310.16834; Ou et al. 2024, arXiv:2406.03736.
        """
        return _over(probabilities, self.likelihoods(x, kept)) @ self.transition(kept)[:, : self.symbols]

    def reverse(self, probabilities: Tensor, x: Tensor, kept: Tensor, more: Tensor) -> Tensor:
        """p(x_s | x_t), (B, L, S), at a level that keeps `more` (B,) than `kept` (B,): sum_c p(c | x_t) q(x_s | x_t, x_0 = c)."""
        of_state = self.transition(torch.where(more > 0, kept / more.clamp_min(1e-300), 1.0)).transpose(1, 2)
        back = of_state[torch.arange(len(x), device=x.device)[:, None], x]  # q(x_t = x | x_s = b)
        law = (_over(probabilities, self.likelihoods(x, kept)) @ self.transition(more)[:, : self.symbols]) * back
        return law / law.sum(-1, keepdim=True)


def _over(probabilities: Tensor, likelihoods: Tensor) -> Tensor:
    """p/q, and 0 where x_t cannot have come of a symbol."""
    return torch.where(likelihoods > 0, probabilities / likelihoods.clamp_min(1e-300), 0.0)


class Absorbing(TokenProcess):
    """Entries turn into a mask, the state K, and stay one: masked diffusion. Sahoo et al. 2024, arXiv:2406.07524."""

    reveals = True

    def __init__(self, symbols: int) -> None:
        super().__init__(symbols)
        self.states = symbols + 1

    @property
    def mask(self) -> int:
        """The state of a masked entry."""
        return self.symbols

    @property
    def rates(self) -> Tensor:
        rates = -torch.eye(self.states, dtype=torch.float64)
        rates[:, -1] += 1
        return rates

    def transition(self, kept: Tensor) -> Tensor:
        return _keeping(kept, torch.eye(self.states, dtype=torch.float64, device=kept.device)[-1])

    def reverse(self, probabilities: Tensor, x: Tensor, kept: Tensor, more: Tensor) -> Tensor:
        # A mask is lifted with the probability (more - kept)/(1 - kept); what is shown stays, where nothing is kept by the process too.
        share = ((more - kept) / (1 - kept))[:, None, None]
        stays = F.one_hot(x, self.states).to(probabilities)
        lifted = F.pad(share * probabilities, (0, 1)) + (1 - share) * stays
        return torch.where((x == self.mask)[..., None], lifted, stays)


class Uniform(TokenProcess):
    """Entries turn into any symbol, each as likely. Hoogeboom et al. 2021, arXiv:2102.05379."""

    @property
    def rates(self) -> Tensor:
        return torch.full((self.states, self.states), 1 / self.states, dtype=torch.float64) - torch.eye(self.states, dtype=torch.float64)

    def transition(self, kept: Tensor) -> Tensor:
        return _keeping(kept, torch.full((self.states,), 1 / self.states, dtype=torch.float64, device=kept.device))


def _keeping(kept: Tensor, other: Tensor) -> Tensor:
    """An entry stays with the probability `kept` (*), and is a draw of `other` (S,) else."""
    share = kept.double()[..., None, None]
    return share * torch.eye(len(other), dtype=torch.float64, device=kept.device) + (1 - share) * other


class DiscretisedGaussian(TokenProcess):
    """Ordered symbols turn into near ones first, with rates exp(-(a - b)^2/(2 width^2)): for levels of grey and counts.

    width: in symbols; None: a sixth of their number, at least 1.
    The rates are symmetric, so that nothing is kept of any symbol in the end. Austin et al. 2021, arXiv:2107.03006, appendix A.2.3.
    """

    def __init__(self, symbols: int, width: float | None = None) -> None:
        super().__init__(symbols)
        self.width = max(1.0, symbols / 6) if width is None else float(width)
        if not 0 < self.width < float("inf"):
            raise ValueError(f"width must be positive and finite, got {width!r}")
        place = torch.arange(symbols, dtype=torch.float64)
        rates = torch.exp(-(((place[:, None] - place) / self.width) ** 2) / 2)
        rates.fill_diagonal_(0)
        rates -= torch.diag(rates.sum(1))
        decays, self._vectors = torch.linalg.eigh(rates)
        slowest = -decays[-2]
        if not slowest > 0:
            raise ValueError(f"width {self.width:g} leaves symbols of {symbols} that never mix: choose a wider one")
        self._decays = (-decays / slowest).clamp_min(0)
        self._decays[-1] = 0.0
        self._rates = rates / slowest

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"width": self.width}

    @property
    def rates(self) -> Tensor:
        return self._rates

    def transition(self, kept: Tensor) -> Tensor:
        vectors = self._vectors.to(kept.device)
        powers = kept.double()[..., None] ** self._decays.to(kept.device)  # 0^0 is 1: the stationary part stays
        found = ((vectors * powers[..., None, :]) @ vectors.T).clamp_min(0)
        return found / found.sum(-1, keepdim=True)


PROCESSES: dict[str, type[TokenProcess]] = {"absorbing": Absorbing, "uniform": Uniform, "gaussian": DiscretisedGaussian}


def make_process(name: str, symbols: int, **settings: Any) -> TokenProcess:
    """The registered process `name` for so many symbols; ValueError for an unknown name or setting, with the ones allowed."""
    return build(PROCESSES, "token process", name, {"symbols": symbols, **settings})


def draw(law: Tensor, uniform: Tensor) -> Tensor:
    """A state of each law (*, S), by its inverse distribution function at `uniform` (*) in (0, 1).

    In float64: in float32 the rarest states would never be drawn (Zheng et al. 2024, arXiv:2409.02908).
    """
    steps = law.double().cumsum(-1)
    return (steps <= uniform.double()[..., None] * steps[..., -1:]).sum(-1).clamp_max(law.shape[-1] - 1)
