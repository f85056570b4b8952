"""Of ADM's U-Net what the tests of all networks do not say; whole networks are judged in external/test_parity.py."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sde_gen.networks import make_network

OPTIONS = {"width": 8, "multipliers": (1, 2), "attention": (1,)}


def filled(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    network = make_network("adm", (3, 8, 8), **{"conditions": 3, **OPTIONS, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    return network.eval()


@pytest.mark.parametrize("resampling", ["block", "conv"])
def test_operations_are_counted(resampling: str) -> None:
    with torch.device("meta"):
        network = make_network("adm", (3, 16, 8), 3, 6, resampling=resampling, head_channels=4, **OPTIONS).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 16, 8), torch.zeros(1))
    assert network.flops() == counter.get_total_flops()


def test_without_a_null_every_sample_has_a_label() -> None:
    network, x, c = filled(null=False), torch.randn(2, 3, 8, 8), torch.zeros(2)
    label = torch.tensor([0, 2])
    assert network(x, c, label=label).shape == x.shape and network.null("label", label) is None
    with pytest.raises(ValueError, match="trained with 'label' given for every sample"):
        network(x, c)
    with_null = filled()
    assert torch.equal(with_null.null("label", label), torch.tensor([3, 3])) and with_null.null("year", label) is None
    assert torch.equal(with_null(x, c), with_null(x, c, label=torch.tensor([3, 3])))


def test_heads_by_number_or_by_channels() -> None:
    by_number, by_channels = filled(heads=2), filled(head_channels=8)
    by_channels.load_state_dict(by_number.state_dict())
    x, c = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 0.4])
    assert torch.equal(by_number(x, c), by_channels(x, c))  # two heads of eight of the sixteen channels
    other = filled(heads=4)
    other.load_state_dict(by_number.state_dict())
    assert not torch.allclose(by_number(x, c), other(x, c))


@pytest.mark.parametrize(
    ("options", "message"), [({"head_channels": 3}, "heads must divide"), ({"head_channels": 64}, "heads must divide")]
)
def test_bad_heads(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_network("adm", (3, 8, 8), **OPTIONS, **options)
