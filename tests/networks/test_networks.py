"""Every registered network keeps the contract `network(x, c, **cond)` on every shape that it takes, told something by every port."""

import json

import pytest
import torch

from sde_gen.conditions import fit_condition
from sde_gen.networks import NETWORKS, Network, make_network, summary
from sde_gen.networks.base import attend

SMALL = {
    "adm": {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_channels": 4},
    "lucid": {"width": 8, "multipliers": (1, 2), "attention": (1,), "heads": 2, "head_channels": 4},
    "mlp": {"width": 16, "depth": 2},
    "song": {
        "width": 8,
        "multipliers": (1, 2),
        "attention": (1,),
        "heads": 2,
        "encoder": "residual",
        "decoder": "skip",
        "kernel": (1, 3, 3, 1),
    },
    "transformer": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
    "unet": {"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,), "heads": 2},
    "unet2d": {"width": 8, "multipliers": (1, 2), "attention": (1,), "head_channels": 4},
}
OURS = sorted(set(NETWORKS) - {"diffusers"})
"""Those of the library diffusers are looked at in external/test_diffusers.py."""
SHAPES = [(1, 8, 8), (3, 33, 47), (2, 50), (1, 9, 10, 11)]
CLASSES = 3


def conditions(shape: tuple[int, ...], size: int = 4) -> dict[str, torch.Tensor]:
    """Values of every kind of condition for data of this shape, some of them not known."""
    generator = torch.Generator().manual_seed(3)
    found = {
        "label": torch.arange(size) % CLASSES,
        "year": 2020 + 5 * torch.randn(size, 2, generator=generator, dtype=torch.float64),
        "series": torch.randn(size, 3, 2, generator=generator),
    }
    found["year"][1, 0] = found["year"][2, 1] = found["series"][2, 1] = torch.nan
    if len(shape) > 1:
        coarse = [-(-n // 2) for n in shape[1:]]
        found["coarse"] = torch.randn(size, 2, *coarse, generator=generator)
        found["mask"] = (torch.rand(size, 1, *shape[1:], generator=generator) < 0.5).float()
        for name in ("coarse", "mask"):
            found[name][-1, :, 0] = torch.nan
    return found


def specs(shape: tuple[int, ...]) -> dict[str, dict]:
    kinds = {"series": "sequence", "mask": "mask"}
    return {name: fit_condition(name, value, shape[1:], kinds.get(name)) for name, value in conditions(shape).items()}


def small(name: str, shape: tuple[int, ...], **options) -> Network:
    torch.manual_seed(0)
    return make_network(name, shape, **{"conditions": specs(shape), **SMALL.get(name, {}), **options})


def perturbed(network: Network, amount: float = 0.1) -> Network:
    """As after some training: no parameter is zero any more."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def batch(shape: tuple[int, ...], size: int = 4) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    c = torch.linspace(-6.0, 8.0, size)
    return torch.randn(size, *shape, generator=generator), c, conditions(shape, size)


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return [shape for shape in [(2,), (1,), (64,), *SHAPES] if len(shape) - 1 in NETWORKS[name].spatial_ranks]


cases = pytest.mark.parametrize(("name", "shape"), [(name, shape) for name in OURS for shape in shapes_of(name)])
names = pytest.mark.parametrize("name", OURS)


@cases
def test_shape_and_zero_start(name, shape):
    x, c, cond = batch(shape)
    network = small(name, shape)
    assert network(x, c, **cond).shape == x.shape
    assert torch.equal(network(x, c, **cond), torch.zeros_like(x))
    more = 2 * shape[0] + 1
    assert perturbed(small(name, shape, out_channels=more))(x, c).shape == (len(x), more, *shape[1:])


@cases
def test_gradient_reaches_every_parameter(name, shape):
    x, c, cond = batch(shape)
    network = perturbed(small(name, shape))
    network(x, c, **cond).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@cases
def test_gradient_reaches_the_output_layer_of_a_fresh_network(name, shape):
    x, c, _ = batch(shape)
    network = small(name, shape)
    (network(x, c) - x).square().sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0


@cases
def test_a_sample_does_not_depend_on_its_batch(name, shape):
    x, c, cond = batch(shape, 5)
    network = perturbed(small(name, shape)).double()
    together = network(x.double(), c.double(), **cond)
    alone = [network(x[[i]].double(), c[[i]].double(), **{name: value[[i]] for name, value in cond.items()}) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)


@cases
def test_options_rebuild_the_network(name, shape):
    x, c, cond = batch(shape)
    network = perturbed(small(name, shape, out_channels=2))
    options = json.loads(json.dumps(network.options))
    again = make_network(name, network.shape, json.loads(json.dumps(network.conditions)), network.out_channels, **options).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(network(x, c, **cond), again(x, c, **cond))
    assert again.options == network.options


@names
def test_defaults_rebuild_the_network(name):
    network = make_network(name, (1, 8, 8))
    again = make_network(name, (1, 8, 8), **network.options)
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in again.state_dict().items()}


@cases
def test_noise_level_and_every_condition_matter(name, shape):
    x, c, cond = batch(shape)
    network = perturbed(small(name, shape))
    assert not torch.allclose(network(x, c), network(x, c + 0.3))
    none, whole = network(x, c), network(x, c, **cond)
    nulls = {key: network.encoders[key].null(network.encoders[key].check(value)) for key, value in cond.items()}
    torch.testing.assert_close(none, network(x, c, **nulls), rtol=1e-5, atol=1e-6)
    for key in cond:
        assert not torch.allclose(whole, network(x, c, **(cond | {key: nulls[key]})), rtol=1e-3, atol=1e-5), key
        mixed = {key: torch.where(torch.arange(len(x)).reshape(-1, *[1] * (nulls[key].ndim - 1)) < 2, cond[key], nulls[key])}
        alone = torch.cat([network(x, c, **{key: cond[key]})[:2], none[2:]])
        torch.testing.assert_close(network(x, c, **mixed), alone, rtol=1e-4, atol=1e-5)


@names
def test_dropout_is_active_in_training_only(name):
    network = perturbed(small(name, (1, 8, 8), dropout=0.5))
    x, c, _ = batch((1, 8, 8))
    assert torch.equal(network(x, c), network(x, c))
    network.train()
    assert not torch.equal(network(x, c), network(x, c))


@names
def test_without_conditions_none_are_taken(name):
    network = small(name, (1, 8, 8), conditions=None)
    x, c, cond = batch((1, 8, 8))
    assert network(x, c).shape == x.shape and network.encoders == {}
    with pytest.raises(ValueError, match="takes no conditions, got 'coarse', 'label'"):
        network(x, c, **cond)


@names
def test_bad_calls(name):
    network = small(name, (1, 8, 8))
    x, c, cond = batch((1, 8, 8))
    with pytest.raises(ValueError, match="x must have shape"):
        network(x[:, :, :7], c)
    with pytest.raises(ValueError, match="c must have shape"):
        network(x, c[:1])
    with pytest.raises(ValueError, match="'label' must have first dimension 4"):
        network(x, c, label=cond["label"][:1])
    with pytest.raises(TypeError, match="integers"):
        network(x, c, label=cond["label"].float())
    with pytest.raises(ValueError, match=r"'coarse' must be a map of shape \(B, 2, 4, 4\), got \(4, 2, 8, 8\)"):
        network(x, c, coarse=torch.zeros(4, 2, 8, 8))


@names
def test_bad_options(name):
    for options in ({"width": 0}, {"width": 3.5}, {"width": True}, {"dropout": 1.0}, {"dropout": -0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            small(name, (1, 8, 8), **options)
    with pytest.raises(ValueError, match=r"colour.*known: .*width"):
        small(name, (1, 8, 8), colour=1)
    with pytest.raises(ValueError, match="classes"):
        small(name, (1, 8, 8), conditions=0)
    with pytest.raises(ValueError, match="out_channels"):
        small(name, (1, 8, 8), out_channels=0)
    with pytest.raises(ValueError, match="shape"):
        small(name, (1, 8, 0))
    with pytest.raises(ValueError, match="dimensions"):
        small(name, (1, 2, 2, 2, 2))


@names
def test_bad_sequences(name):
    for option, value in make_network(name, (1, 8, 8)).options.items():
        if isinstance(value, list):
            with pytest.raises(TypeError, match=option):
                small(name, (1, 8, 8), **{option: 2})
            with pytest.raises(ValueError, match=option):
                small(name, (1, 8, 8), **{option: (-1,)})


def test_unknown_name_and_particular_options():
    with pytest.raises(ValueError, match=r"unknown network 'resnet'; known: adm, diffusers, lucid, mlp, song, transformer, unet, unet2d"):
        make_network("resnet", (1, 8, 8))
    with pytest.raises(ValueError, match="dimensions"):
        make_network("unet", (5,))
    with pytest.raises(ValueError, match=r"levels in 0\.\.1"):
        make_network("unet", (1, 8, 8), multipliers=(1, 2), attention=(2,))
    with pytest.raises(ValueError, match="at least one level"):
        make_network("unet", (1, 8, 8), multipliers=(), attention=())
    with pytest.raises(ValueError, match="heads must divide"):
        make_network("unet", (1, 8, 8), heads=5)
    with pytest.raises(ValueError, match="multiple of heads"):
        make_network("transformer", (1, 8, 8), width=30, heads=4)


@names
def test_trains_in_bfloat16(name):
    network = perturbed(small(name, (1, 8, 8)), 0.02).train()
    x, c, cond = batch((1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x, c, **cond)
    y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_bfloat16_is_rounded_only_at_its_end_on_a_cpu(autocast):
    q, k, v = torch.randn(3, 2, 4, 49, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    leaf = q.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = attend(leaf, k, v)
    assert y.dtype == torch.bfloat16
    weights = torch.softmax(q.double() @ k.double().transpose(2, 3) / 4, dim=3)
    exact = (weights @ v.double()).bfloat16()
    assert (y == exact).float().mean() > 0.99  # bfloat16 inside leaves a third of them different
    y.float().square().sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.bfloat16 and bool(leaf.grad.abs().sum() > 0)


def test_summary_counts_parameters_and_operations():
    network = make_network("mlp", (6,), width=8, depth=1, expansion=2)
    line = summary(network, (6,))
    assert "MLP" in line and "\n" not in line
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in line
    features = network.condition.level[1].in_features
    condition = features * 8 + 8 * 8
    products = condition + 6 * 8 + 8 * 24 + 2 * 8 * 16 + 8 * 6
    assert f"{2 * products / 1e9:.3g} GFLOP" in line
    assert network.training
