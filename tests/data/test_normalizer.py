import json
import math

import pytest
import safetensors.torch
import torch

from sde_gen.data import Normalizer
from sde_gen.data.normalizer import KINDS


def data(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.5, 300, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator) * spread + 1000 * spread.sqrt()


SHAPES = [(50, 3), (50, 2, 7), (40, 3, 5, 4), (30, 2, 3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_and_units(shape, kind):
    x = data(*shape)
    normalizer = Normalizer.fit(x, kind)
    z = normalizer.encode(x.double())
    over = [0, *range(2, x.ndim)]
    if kind == "standard":
        torch.testing.assert_close(z.mean(over), torch.zeros(shape[1], dtype=torch.float64), atol=1e-11, rtol=0)
        torch.testing.assert_close(z.std(over, correction=0), torch.ones(shape[1], dtype=torch.float64), atol=1e-11, rtol=0)
    elif kind == "range":
        torch.testing.assert_close(z.amax(over), torch.ones(shape[1], dtype=torch.float64), atol=1e-11, rtol=0)
        torch.testing.assert_close(z.amin(over), -torch.ones(shape[1], dtype=torch.float64), atol=1e-11, rtol=0)
    elif kind == "robust":
        flat = z.movedim(1, 0).flatten(1)
        low, middle, high = flat.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=1)
        assert float(middle.abs().max()) < 0.1 and float((high - low - 1.349).abs().max()) < 0.1
    else:
        assert torch.equal(z, x.double())
    torch.testing.assert_close(normalizer.decode(z), x.double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(normalizer.decode(normalizer.encode(x)), x, rtol=1e-6, atol=0)


def test_statistics_are_taken_in_float64():
    x = 1e4 + torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    normalizer = Normalizer.fit(x)
    assert normalizer.shift.dtype == normalizer.scale.dtype == torch.float64
    assert float(normalizer.shift) == pytest.approx(float(x.double().mean()), rel=1e-13)
    assert float(normalizer.scale) == pytest.approx(float(x.double().std(correction=0)), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_of_the_inputs_type_and_at_least_float32(dtype):
    normalizer = Normalizer(torch.tensor([100.0]), torch.tensor([3.0]))
    x = torch.tensor([[101.0], [97.0]], dtype=dtype)
    z, least = normalizer.encode(x), torch.promote_types(dtype, torch.float32)
    assert z.dtype == normalizer.decode(z).dtype == normalizer.decode(z.to(dtype)).dtype == least
    assert torch.equal(z, torch.tensor([[1 / 3], [-1.0]], dtype=torch.float64).to(least))
    with pytest.raises(TypeError, match="uint8"):
        normalizer.encode(x.to(torch.uint8))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_log_det_is_that_of_the_jacobian(shape, kind):
    normalizer = Normalizer.fit(data(20, *shape), kind)
    x = data(1, *shape, seed=1)[0].double()
    jacobian = torch.autograd.functional.jacobian(normalizer.encode, x).reshape(x.numel(), x.numel())
    assert float(normalizer.log_det(x[None])) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-9)


def test_log_det_turns_densities():
    x = data(500, 1)
    normalizer = Normalizer.fit(x)
    latent = torch.distributions.Normal(0.0, 1.0).log_prob(normalizer.encode(x.double())).squeeze(1) + normalizer.log_det(x)
    direct = torch.distributions.Normal(normalizer.shift.double(), normalizer.scale.double()).log_prob(x.double()).squeeze(1)
    torch.testing.assert_close(latent, direct)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_feature_gets_scale_one(kind):
    x = data(20, 3)
    x[:, 1] = 7.0
    normalizer = Normalizer.fit(x, kind)
    assert normalizer.scale[1] == 1
    assert torch.equal(normalizer.encode(x)[:, 1], torch.full((20,), 7.0 if kind == "identity" else 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_rebuilds_it_exactly(kind, tmp_path):
    normalizer = Normalizer.fit(data(20, 3, 4, 4), kind)
    safetensors.torch.save_file(normalizer.state_dict(), tmp_path / "n.safetensors")
    again = Normalizer.from_config(json.loads(json.dumps(normalizer.to_config())))
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "n.safetensors"))
    assert again.shift.dtype == torch.float64 and torch.equal(again.shift, normalizer.shift) and again.dtype == normalizer.dtype
    x = data(5, 3, 4, 4, seed=2)
    assert torch.equal(again.encode(x), normalizer.encode(x)) and again.kind == kind
    assert torch.equal(again.log_det(x), normalizer.log_det(x))


def test_shapes_that_do_not_fit_are_refused():
    normalizer = Normalizer.fit(data(20, 3, 4, 4))
    assert normalizer.encode(data(6, 3, 9, 2)).shape == (6, 3, 9, 2)  # any spatial size
    assert normalizer.decode(torch.zeros(5, 6, 3, 9, 2)).shape == (5, 6, 3, 9, 2)  # a trajectory
    for bad in ((6, 1, 4, 4), (6, 3), (3, 4)):
        with pytest.raises(ValueError, match="does not fit"):
            normalizer.encode(torch.zeros(bad))
    with pytest.raises(ValueError, match="does not fit"):
        normalizer.log_det(torch.zeros(2, 6, 3, 4, 4))
    with pytest.raises(ValueError, match="does not fit"):
        Normalizer.fit(data(20, 2)).encode(torch.zeros(20, 1))  # would broadcast


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (torch.ones(5, 3), "standard", "constant data"),
        (torch.tensor([1.0, 2.0]).repeat(5, 1), "range", "constant data"),
        (torch.tensor([[1.0], [math.nan]]), "standard", "NaN"),
        (torch.tensor([[1.0], [math.inf]]), "range", "NaN or infinite"),
        (torch.rand(5), "standard", "shape"),
        (torch.rand(5, 2), "whiten", "'whiten' is unknown; allowed: standard"),
        (torch.tensor([[0.0], [1e-42]]), "standard", "1e-38"),
    ],
)
def test_what_cannot_be_fitted_is_refused(values, kind, message):
    with pytest.raises(ValueError, match=message) as caught:
        Normalizer.fit(values, kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "standard"},
        {"kind": "odd", "shape": [3]},
        {"kind": "range", "shape": [0]},
        {"kind": "range", "shape": [2, 3]},
        {"kind": "range", "shape": [2], "dtype": "float16"},
        {"kind": "range", "shape": [2], "device": "cpu"},
    ],
)
def test_a_bad_configuration_is_refused(config):
    with pytest.raises(ValueError):
        Normalizer.from_config(config)


OFFSETS = {"metres": (-234567.0, 0.02), "counts": (1e8, 1.0), "plain": (5.0, 2.0)}


@pytest.mark.parametrize("name", OFFSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_float64_data_with_a_large_offset_are_encoded_exactly_and_come_back(name, kind):
    offset, spread = OFFSETS[name]
    x = offset + spread * torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normalizer = Normalizer.fit(x, kind)
    assert normalizer.dtype == (torch.float32 if name == "plain" else torch.float64)
    z = normalizer.encode(x)
    torch.testing.assert_close(z, (x - normalizer.shift) / normalizer.scale, rtol=0, atol=0)
    if kind == "standard":
        assert float(z.std()) == pytest.approx(1, abs=2e-3) and len(z.unique()) == 1000
        back = normalizer.decode(z.float())  # what a float32 sampler hands over
        assert back.dtype == normalizer.dtype and len(back.unique()) >= 990
        assert float((back.double() - x).abs().max()) < 1e-6 * spread + (1e-6 if name == "plain" else 0)
    again = Normalizer.from_config(json.loads(json.dumps(normalizer.to_config())))
    assert again.dtype == normalizer.dtype


def test_a_constant_column_beside_others_does_not_ask_for_float64():
    x = torch.randn(50, 2, dtype=torch.float64)
    x[:, 1] = 1 / 3 + 1e6
    assert Normalizer.fit(x).dtype == torch.float32


@pytest.mark.parametrize(
    "cast", [lambda m: m.float(), lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double(), lambda m: m.to(torch.float16)]
)
def test_statistics_survive_casts_of_the_model_around_them(cast):
    normalizer = Normalizer(torch.tensor([281.24, -1e5], dtype=torch.float64), torch.tensor([0.123456789, 7e4], dtype=torch.float64))
    expected = {name: value.clone() for name, value in normalizer.state_dict().items()}
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), normalizer)
    cast(model)
    assert all(value.dtype == torch.float64 and torch.equal(value, expected[name]) for name, value in normalizer.state_dict().items())
    cast(normalizer)
    assert torch.equal(normalizer.shift, expected["shift"]) and "shift" in dict(normalizer.named_buffers())
    assert torch.isfinite(normalizer.decode(torch.ones(3, 2, dtype=torch.float16))).all()
    assert model.to("meta")[1].shift.device.type == "meta" and model[0].weight.device.type == "meta"


def test_a_checkpoint_with_float32_statistics_is_still_read():
    normalizer = Normalizer.from_config({"kind": "standard", "shape": [2]})
    normalizer.load_state_dict({"shift": torch.tensor([1.5, 2.5]), "scale": torch.tensor([0.1, 3.0])})
    assert torch.equal(normalizer.scale, torch.tensor([0.1, 3.0]).double())
