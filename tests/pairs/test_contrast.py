"""The contrastive loss against laws that are known: von Mises-Fisher pairs, whose exact critic is kappa a . b."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln, ive
from torch import Tensor, nn
from torch.nn import functional as F

from sde_gen.pairs import info_nce, information_bound
from sde_gen.pairs.contrast import MOST_SCALE, scale_of, similarities

DIMS, KAPPA = 16, 12.0


def von_mises_fisher(count: int, generator: torch.Generator, dims: int = DIMS, kappa: float = KAPPA) -> tuple[Tensor, Tensor]:
    """Pairs on the sphere: a uniform, and b with density proportional to exp(kappa a . b) beside it. The cosine's law,
    (1 - w^2)^((dims - 3)/2) exp(kappa w), is drawn by its inverse distribution function on a fine grid."""
    grid = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    density = (1 - grid**2).clamp_min(1e-300).log() * (dims - 3) / 2 + kappa * (grid - 1)
    below = density.exp().cumsum(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    w = grid[torch.searchsorted(below / below[-1], drawn).clamp(max=len(grid) - 1)].float()[:, None]
    a, other = (torch.randn(count, dims, generator=generator) for _ in range(2))
    a = F.normalize(a, dim=1)
    tangent = F.normalize(other - (other * a).sum(1, keepdim=True) * a, dim=1)
    return a, w * a + (1 - w**2).clamp_min(0).sqrt() * tangent


def information(dims: int, kappa: float) -> float:
    """Mutual information of von Mises-Fisher pairs: kappa A(kappa) - log of the normaliser's ratio to the uniform law's, in nats."""
    order = dims / 2 - 1
    mean = ive(order + 1, kappa) / ive(order, kappa)
    log_bessel = math.log(ive(order, kappa)) + kappa
    log_density = order * math.log(kappa) - dims / 2 * math.log(2 * math.pi) - log_bessel
    log_sphere = math.log(2) + dims / 2 * math.log(math.pi) - float(gammaln(dims / 2))
    return float(kappa * mean + log_density + log_sphere)


def test_the_temperature_is_the_concentration_and_the_loss_is_the_exact_critics() -> None:
    """Two linear towers, of which one has to undo a rotation of the sphere, and the temperature are learned together."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(DIMS, DIMS, generator=generator))[0]
    torch.manual_seed(0)
    tower, log_scale = nn.Linear(DIMS, DIMS, bias=False), nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.Adam([{"params": tower.parameters()}, {"params": [log_scale]}], lr=0.02)
    steps, batch, scales = 300, 256, []
    for step in range(steps):
        a, b = von_mises_fisher(batch, generator)
        loss = info_nce(a, F.normalize(tower(b @ rotation), dim=1), log_scale)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / steps) + 1e-4
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scales.append(float(scale_of(log_scale.detach())))
    assert abs(np.mean(scales[-100:]) / KAPPA - 1) < 0.01
    with torch.no_grad():
        learned, exact = [], []
        for _ in range(20):
            a, b = von_mises_fisher(1024, generator)
            learned.append(float(info_nce(a, F.normalize(tower(b @ rotation), dim=1), log_scale)))
            exact.append(float(info_nce(a, b, torch.tensor(math.log(KAPPA)))))
    gap = np.array(learned) - np.array(exact)
    assert abs(gap.mean()) < 0.01  # of a loss of about 5
    for other in (0.8, 1.25):  # and the exact critic is the best one
        assert float(info_nce(a, b, torch.tensor(math.log(KAPPA * other)))) > exact[-1]


def test_the_loss_bounds_the_information_from_below_and_closely() -> None:
    dims, kappa, pairs = 4, 12.0, 2048
    a, b = von_mises_fisher(pairs, torch.Generator().manual_seed(1), dims, kappa)
    bound = information_bound(info_nce(a, b, torch.tensor(math.log(kappa))), pairs)
    exact = information(dims, kappa)
    assert exact == pytest.approx(information(dims, kappa * (1 + 1e-9)), abs=1e-6) and information(dims, 1e-6) == pytest.approx(0, abs=1e-9)
    assert exact - 0.08 < bound < exact + 0.08  # the draw's own error is 0.03


def test_it_is_what_the_sum_says() -> None:
    a, b = von_mises_fisher(7, torch.Generator().manual_seed(2))
    s = (3.0 * a @ b.T).double()
    rows = -sum(s[i, i] - torch.logsumexp(s[i], 0) for i in range(7)) / 7
    columns = -sum(s[i, i] - torch.logsumexp(s[:, i], 0) for i in range(7)) / 7
    torch.testing.assert_close(info_nce(a, b, torch.tensor(math.log(3.0))).double(), (rows + columns) / 2)


def test_duplicates_of_a_caption_are_no_negatives() -> None:
    a, b = von_mises_fisher(6, torch.Generator().manual_seed(3))
    b[1] = b[0]
    same, log_scale = torch.tensor([5, 5, 1, 2, 3, 4]), torch.tensor(2.0)
    s = similarities(a, b, log_scale)
    seen = [[j for j in range(6) if j == i or {i, j} != {0, 1}] for i in range(6)]
    rows = torch.stack([torch.logsumexp(s[i, seen[i]], 0) - s[i, i] for i in range(6)])
    columns = torch.stack([torch.logsumexp(s[seen[i], i], 0) - s[i, i] for i in range(6)])
    torch.testing.assert_close(info_nce(a, b, log_scale, same), 0.5 * (rows.mean() + columns.mean()))
    assert float(info_nce(a, b, log_scale)) > float(info_nce(a, b, log_scale, same)) + 0.02
    torch.testing.assert_close(info_nce(a, b, log_scale, torch.arange(6)), info_nce(a, b, log_scale))


def test_the_scale_is_clamped_and_shapes_are_checked() -> None:
    a, b = von_mises_fisher(4, torch.Generator().manual_seed(4))
    assert float(scale_of(torch.tensor(9.0))) == pytest.approx(MOST_SCALE)
    torch.testing.assert_close(info_nce(a, b, torch.tensor(9.0)), info_nce(a, b, torch.tensor(math.log(MOST_SCALE))))
    with pytest.raises(ValueError, match=r"one shape \(N, D\), got \(4, 16\) and \(3, 16\)"):
        info_nce(a, b[:3], torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"same must have shape \(4,\), one number for each pair, got \(3,\)"):
        info_nce(a, b, torch.tensor(1.0), torch.arange(3))
