import numpy as np
import pytest
import torch
from toys import all_sdes

import sde_gen
from sde_gen.discrete import chain_of
from sde_gen.exact.mixtures import GaussianData, RingData

SDES = all_sdes()
DATA = GaussianData.correlated()
TIGHT = {"rtol": 1e-8, "atol": 1e-8, "progress": False}


@pytest.mark.parametrize("name", SDES)
def test_latents_of_gaussian_data_are_its_flow_map_and_lead_back(name, device):
    sde, data = SDES[name], DATA.to(device)
    model, x = data.model(sde), data.sample(16)
    z = sde_gen.encode(model, x, **TIGHT)
    exact = data.flow_map(float(sde.marginal(torch.tensor(sde.t_min))[0]) * x, sde, sde.t_min, sde.t_max)
    torch.testing.assert_close(z, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
    back = sde_gen.sample(model, x.shape, "ode", x_init=z, final="raw", **TIGHT).x
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


def test_a_multistep_solver_encodes_too(device):
    sde, data = SDES["vp"], DATA.to(device)
    model, x = data.model(sde), data.sample(16)
    z = sde_gen.encode(model, x, "dpm", steps=100, progress=False)
    torch.testing.assert_close(z, sde_gen.encode(model, x, **TIGHT), rtol=0, atol=1e-3)


def test_arrays_are_taken_as_tensors_are():
    model, x = DATA.model(SDES["vp"]), DATA.sample(4).double()
    calls = (
        lambda x: sde_gen.encode(model, x, "dpm", steps=4, progress=False),
        lambda x: sde_gen.interpolate(model, x, x, 3, "dpm", steps=4, progress=False),
        lambda x: sde_gen.mix(model, x, x, 3, 0.5, steps=4, progress=False),
    )
    for call in calls:
        assert torch.equal(call(x.numpy()), call(x))
        with pytest.raises(ValueError, match=r"4 of .* cells are masked"):
            call(np.ma.array(x.numpy(), mask=np.arange(x.numel()).reshape(x.shape) < 4))
        with pytest.raises(TypeError, match="must be a tensor or an array, got list"):
            call([[0.0]])


@pytest.mark.parametrize("name", ["vp", "cosine"])
def test_ddim_inversion_along_a_chain_leads_back_as_one_over_n(name):
    errors = []
    for steps in (100, 400):
        sde = sde_gen.make_sde(name)
        model, x, chain = DATA.model(sde), DATA.sample(16), chain_of(sde, steps)
        z = sde_gen.encode(model, x, "ddim", grid=chain.times, progress=False)
        back = sde_gen.sample(model, x.shape, "ddim", x_init=z, grid=chain.times.flip(0), final="raw", progress=False).x
        errors.append(float((back - x).abs().mean()))
        assert z.shape == x.shape and float((z.std() - 1).abs()) < 0.5
    assert errors[1] < errors[0] / 2.5 and errors[1] < 0.05, errors


def test_interpolation_joins_the_two_and_stays_on_the_data(device):
    ring = RingData(4, std=0.1).to(device)
    model, data = ring.model(SDES["vp"]), ring.sample(16)
    a, b = data[:8], data[8:]
    path = sde_gen.interpolate(model, a, b, 5, **TIGHT)
    assert path.shape == (5, 8, 2)
    torch.testing.assert_close(path[0], a, rtol=0, atol=1e-4)
    torch.testing.assert_close(path[-1], b, rtol=0, atol=1e-4)
    assert bool(torch.isfinite(path).all())


def test_mixing_keeps_the_ends_at_small_depth_and_forgets_them_at_large_depth(device):
    ring = RingData(4, std=0.1).to(device)
    sde = SDES["vp"]
    model, data = ring.model(sde), ring.sample(64)
    a, b = data[:32], data[32:]
    shallow = sde_gen.mix(model, a, b, 3, t=0.01, steps=20, progress=False)
    assert shallow.shape == (3, 32, 2)
    assert float((shallow[0] - a).norm(dim=1).max()) < 0.5 and float((shallow[2] - b).norm(dim=1).max()) < 0.5
    deep = sde_gen.mix(model, a, b, 2, t=sde.t_max, steps=100, progress=False)
    assert float((deep[0] - deep[1]).norm(dim=1).median()) < 0.1  # the same noise, and nothing left of a or b


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x: sde_gen.encode(model, x, "em"), "runs from noise to data only"),
        (lambda model, x: sde_gen.interpolate(model, x, x[:1], 3), "the same shape"),
        (lambda model, x: sde_gen.interpolate(model, x, x, 1), "at least 2"),
        (lambda model, x: sde_gen.mix(model, x, x, 3, t=0.0), "t must be in"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(DATA.model(SDES["vp"]), DATA.sample(4))
