import pytest
import torch
from torch import nn

from sde_gen.training.ema import PowerAverage, power_exponent


def profile(width: float, steps: int) -> torch.Tensor:
    """The weight that each step's value has in the average after `steps` updates."""
    exponent = power_exponent(width) + 1
    share = torch.zeros(steps, dtype=torch.float64)
    for n in range(1, steps + 1):
        beta = (1 - 1 / n) ** exponent
        share *= beta
        share[n - 1] += 1 - beta
    return share


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_profile_has_the_width_asked_for(width: float) -> None:
    steps = 4000
    share, at = profile(width, steps), torch.arange(1, steps + 1, dtype=torch.float64) / steps
    assert float(share.sum()) == pytest.approx(1)
    mean = (share * at).sum()
    assert float(((share * (at - mean) ** 2).sum()).sqrt()) == pytest.approx(width, rel=0.02)


def test_average_follows_the_profile_and_is_right_from_the_first_step() -> None:
    network = nn.Linear(3, 2).double()
    average = PowerAverage(network, 0.1)
    seen = []
    for step in range(30):
        with torch.no_grad():
            network.weight.copy_(torch.full((2, 3), float(step**2)))
        average.update(network)
        seen.append(float(step**2))
        expected = float((profile(0.1, step + 1) * torch.tensor(seen, dtype=torch.float64)).sum())
        assert float(average.module.weight.detach()[0, 0]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_buffers_are_those_of_the_network() -> None:
    network = nn.BatchNorm1d(4)
    average = PowerAverage(network)
    for _ in range(5):
        network(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) + 3)
        average.update(network)
    assert torch.equal(average.module.running_mean, network.running_mean)
    assert torch.equal(average.module.num_batches_tracked, network.num_batches_tracked)


@pytest.mark.parametrize("width", [0.0, -1.0, 0.3, float("nan")])
def test_bad_width(width: float) -> None:
    with pytest.raises(ValueError, match=r"width must be above 0 and below 0.28"):
        PowerAverage(nn.Linear(1, 1), width)
