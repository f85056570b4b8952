"""solver="auto": what it stands for, by the steps, the fits and the model that there are, and that it says so."""

import dataclasses

import pytest
import torch
from guided_laws import kind, mixtures
from toys import all_sdes

from sde_gen import fit_grid, guide, make_sde, sample
from sde_gen.exact.mixtures import RingData
from sde_gen.inverse import TMPD, Gaussian, Mask, Measurement
from sde_gen.sampling.automatic import choose_solver

RING = RingData(5, std=0.2)
SDES = all_sdes()


def draw(model, solver="auto", **settings):
    return sample(model, (6, 2), solver, **({"progress": False, "seed": 3} | settings))


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("steps", [5, 10, 20, 50, None])
def test_it_is_the_flow_at_few_calls(name, steps):
    model = RING.model(SDES[name])
    own, named = draw(model, steps=steps), draw(model, "angle", steps=steps)
    assert torch.equal(own.x, named.x) and torch.equal(own.nfe, named.nfe) and named.picked is None
    assert own.picked == f"angle, {20 if steps is None else steps} steps: the nearest to the flow at 5 to 50 calls"


def test_it_takes_the_fit_with_the_least_error_for_these_steps_and_this_model():
    model, other = RING.model(make_sde("vp")), RING.model(make_sde("vp", beta_max=10.0))
    for solver in ("heun", "unipc"):
        fit_grid(model, solver, 6, samples=8, iterations=2)
    fits = {fit.solver: fit for fit in model.fitted.values()}
    for error, best in ((1.0, "heun"), (1e-9, "unipc")):
        fit = dataclasses.replace(fits["unipc"], error=error)
        model.fitted[fit.key] = fit
        out = draw(model, steps=6)
        assert out.fitted and out.picked.startswith(f"{best}, 6 steps on a fitted grid: fitted to this model")
        assert torch.equal(out.x, draw(model, best, steps=6).x)
    assert draw(model, steps=7).picked.startswith("angle, 7 steps:"), "of other steps"
    assert draw(model, steps=6, grid="karras").picked.startswith("angle, 6 steps:"), "a grid of the caller's own"
    assert draw(model, steps=6, t_end=0.5).picked.startswith("angle, 6 steps:"), "other ends"
    assert choose_solver(model, 6, ("label",)).fitted is None, "other conditions"
    other.fitted = dict(model.fitted)
    assert draw(other, steps=6).picked.startswith("angle, 6 steps:"), "of another process"
    assert draw(model, steps=6, grid="fitted").fitted
    times = torch.linspace(model.sde.t_max, model.sde.t_min, 7, dtype=torch.float64)
    assert torch.equal(draw(model, grid=times).x, draw(model, "angle", grid=times).x)


def test_particles_and_measurements_take_the_reverse_sde():
    model = RING.model(make_sde("vp"))
    guided = guide(mixtures(), 2.0)
    own, named = (draw(guided, solver, steps=12, particles=4, cond=kind(6)) for solver in ("auto", "dpm_sde"))
    assert torch.equal(own.x, named.x) and own.picked == "dpm_sde, 12 steps: particles need the reverse SDE" and named.picked is None
    with pytest.raises(ValueError, match="solver 'auto' has no options, got order"):
        draw(guided, particles=4, cond=kind(6), order=1)
    restored = TMPD(model, Measurement(Mask(torch.tensor([True, False])), Gaussian(0.1)))
    y = torch.zeros(6, 1, dtype=torch.float64)
    own, named = (draw(restored, solver, steps=12, cond={"measured": y}) for solver in ("auto", "dpm_sde"))
    assert torch.equal(own.x, named.x) and own.picked == "dpm_sde, 12 steps: a measurement's corrections follow no flow"


def test_it_says_so_in_one_line_and_takes_no_options(capsys):
    model = RING.model(make_sde("vp"))
    draw(model, steps=5, progress=True)
    assert capsys.readouterr().err == "auto: angle, 5 steps: the nearest to the flow at 5 to 50 calls\n"
    draw(model, steps=5)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="solver 'auto' has no options, got order: they belong to a solver given by name"):
        draw(model, order=3)


def test_it_runs_towards_noise_and_from_states_of_the_callers_own():
    model = RING.model(make_sde("ve"))
    x = draw(model, steps=20).x
    z = draw(model, x_init=x, x_init_units="data", t_start=model.sde.t_min, t_end=model.sde.t_max, steps=40)
    back = draw(model, x_init=z.x, steps=40, final="raw")
    torch.testing.assert_close(back.x, x, rtol=0, atol=0.05)
