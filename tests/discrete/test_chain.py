"""Chains: every equation against one worked out another way, and the way to an SDE and back."""

import math
from decimal import Decimal, getcontext

import pytest
import torch
from toys import all_sdes

from sde_gen import make_sde, sample
from sde_gen.discrete import DiscreteChain, make_chain
from sde_gen.sdes import BETAS
from sde_gen.solvers import make_solver

getcontext().prec = 60
SDES = all_sdes()
CHAINS = {
    **{f"betas-{name}": make_chain(name, 100) for name in BETAS},
    **{f"{name}-{grid}": DiscreteChain.from_sde(sde, 60, grid) for name, sde in SDES.items() for grid in ("time", "half_log_snr")},
    "strided": make_chain("linear", 1000).strided(7),
    "one step": make_chain("constant", 1),
}
every = pytest.mark.parametrize("name", CHAINS)
every_sde = pytest.mark.parametrize("name", SDES)


def equal(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tolerance, atol=1e-300)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# the betas


def test_ddpm_betas():
    chain = make_chain("linear", 1000)
    a, b = chain.one_step(torch.arange(1000))
    equal(b**2, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    equal(a**2, 1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    assert float(chain.alpha[-1] ** 2) == pytest.approx(4.04e-5, rel=2e-3)
    assert len(chain) == 1000 and chain.prior_std == 1.0
    equal(chain.alpha**2 + chain.sigma**2, torch.ones(1000))


def test_cosine_betas():
    # Nichol and Dhariwal 2021, equation 17: abar is cos^2((u + s)/(1 + s) pi/2) over its value at 0, until beta is clipped.
    chain = make_chain("cosine", 50)
    u = torch.arange(51, dtype=torch.float64) / 50
    squares = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    equal(chain.alpha[:-1] ** 2, squares[1:-1] / squares[0], 1e-10)
    assert float(chain.one_step(49)[1] ** 2) == pytest.approx(0.999, rel=1e-9)


def test_the_other_betas():
    quadratic, constant, sigmoid = (make_chain(name, 9).one_step(torch.arange(9))[1] ** 2 for name in ("quadratic", "constant", "sigmoid"))
    equal(quadratic[[0, 4, 8]], [1e-4, (0.5 * (0.01 + 0.02**0.5)) ** 2, 0.02], 1e-9)
    equal(constant, [0.02] * 9, 1e-9)
    equal(sigmoid[4:5], [0.5 * (1e-4 + 0.02)], 1e-9)
    assert bool((sigmoid.diff() > 0).all())
    equal(make_chain("linear", 3, beta_end=0.4).one_step(2)[1] ** 2, 0.4)


# the equations of DESIGN section 7


@every
def test_composed_steps_are_the_marginal(name):
    chain = CHAINS[name]
    alpha, variance = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for i in range(len(chain)):
        a, b = chain.one_step(i)
        alpha, variance = a * alpha, a**2 * variance + b**2
        for found, wanted in zip((alpha, variance.sqrt()), chain.marginal(i), strict=True):
            equal(found, wanted)


@every
def test_posterior_is_bayes_rule(name):
    # In 60 digits, from the chain's own alpha and sigma: q(x_{i-1} | x_i, x_0) ~ q(x_i | x_{i-1}) q(x_{i-1} | x_0).
    chain = CHAINS[name]
    alpha, sigma = ([Decimal(value) for value in column.tolist()] for column in (chain.alpha, chain.sigma))
    for i in range(1, len(chain), max(1, len(chain) // 12)):
        a = alpha[i] / alpha[i - 1]
        noise = sigma[i] ** 2 - a**2 * sigma[i - 1] ** 2
        precision = 1 / sigma[i - 1] ** 2 + a**2 / noise
        wanted = (alpha[i - 1] / sigma[i - 1] ** 2 / precision, a / noise / precision, 1 / precision)
        # The steps are differences of numbers known to 1e-16: so much is lost to the rounding of alpha and sigma themselves.
        lost = 1e-15 * float(sigma[i] ** 2 / noise)
        for found, exact in zip(chain.posterior_coefficients(i), wanted, strict=True):
            equal(found, float(exact), max(1e-12, 4 * lost))


def test_ddpm_posterior_from_its_betas():
    # Issue 5, target 1: from the betas alone, in 60 digits, with DDPM's own formulas.
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    chain = make_chain("linear", 1000)
    x_0, x_i = normal(1, 3), normal(1, 3, seed=1)
    before = Decimal(1)
    for i, beta in enumerate(Decimal(value) for value in betas.tolist()):
        abar = before * (1 - beta)
        of_data = before.sqrt() * beta / (1 - abar)
        of_state = (1 - beta).sqrt() * (1 - before) / (1 - abar)
        mean, variance = chain.posterior(x_0, x_i, i)
        equal(variance, float(beta * (1 - before) / (1 - abar)))
        equal(chain.marginal(i)[0], float(abar.sqrt()))
        equal(chain.marginal(i)[1], float((1 - abar).sqrt()))
        torch.testing.assert_close(mean, float(of_data) * x_0 + float(of_state) * x_i, rtol=1e-12, atol=1e-12)
        before = abar


@every
def test_the_first_posterior_is_the_data(name):
    chain = CHAINS[name]
    x_0, x_i = normal(4, 2, 3), normal(4, 2, 3, seed=1)
    mean, variance = chain.posterior(x_0, x_i, 0)
    assert torch.equal(mean, x_0) and float(variance) == 0.0
    assert [float(value) for value in chain.marginal(-1)] == [1.0, 0.0]
    assert float(chain.variance(0, "fixed_small")) == 0.0
    equal(chain.variance(0, "fixed_large"), chain.one_step(0)[1] ** 2)


def test_an_index_for_each_sample():
    chain = CHAINS["subvp-time"]
    x_0, x_i, i = normal(5, 2, 3), normal(5, 2, 3, seed=1), torch.tensor([0, 7, 3, 59, 7])
    mean, variance = chain.posterior(x_0, x_i, i)
    assert variance.shape == (5, 1, 1)
    for row, index in enumerate(i.tolist()):
        one, its = chain.posterior(x_0[row : row + 1], x_i[row : row + 1], index)
        torch.testing.assert_close(mean[row : row + 1], one)
        torch.testing.assert_close(variance[row].squeeze(), its)


@every
def test_variances(name):
    chain = CHAINS[name]
    for i in {len(chain) - 1, min(1, len(chain) - 1)}:
        large, small = chain.variance(i, "fixed_large"), chain.variance(i, "fixed_small")
        equal(large, chain.one_step(i)[1] ** 2)
        assert float(small) <= float(large)
        if i:
            fraction = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            equal(torch.log(chain.variance(i, "learned", fraction)), fraction * large.log() + (1 - fraction) * small.log(), 1e-10)
    ends = chain.variance(torch.tensor([0, 0]), "learned", torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    equal(ends[1, 0], chain.variance(0, "fixed_large"))
    if len(chain) > 1:  # Nichol and Dhariwal's clipping: log 0 would not do
        equal(ends[0, 0], chain.variance(1, "fixed_small"))


@every_sde
@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_the_continuous_ancestral_step_is_the_chains(name, kind):
    chain = DiscreteChain.from_sde(SDES[name], 25)
    updates = make_solver("ancestral", variance=kind).plan(SDES[name], chain.times.flip(0))
    assert len(updates) == 24
    for i, update in zip(range(24, 0, -1), updates, strict=True):
        of_data, of_state, _ = chain.posterior_coefficients(i)
        variance = chain.variance(i, kind)
        wanted = [float(of_state), float(of_data), float(variance) ** 0.5]
        assert [update.a, update.b[0], update.c] == pytest.approx(wanted, rel=1e-9)


# index and time


@every
def test_index_and_time_round_trip(name):
    chain = CHAINS[name]
    i = torch.arange(len(chain))
    times = chain.time(i)
    assert torch.equal(chain.index(times), i) and torch.equal(chain.index(times.float()), i)
    assert torch.equal(chain.position(times), i.double())
    assert [int(chain.index(float(t))) for t in times[:3]] == list(range(min(3, len(chain))))
    assert chain.index(times.reshape(-1, 1)).shape == (len(chain), 1)


def test_ddpms_own_map():
    chain = make_chain("linear", 1000)
    assert torch.equal(chain.times, torch.arange(1, 1001, dtype=torch.float64) / 1000)
    assert float(chain.position(0.0105)) == pytest.approx(9.5) and float(chain.position(0.0)) == 0.0
    with pytest.raises(ValueError, match=r"times of the chain, got 0\.0105"):
        chain.index(0.0105)


# from an SDE and back


@every_sde
@pytest.mark.parametrize("grid", ["time", "half_log_snr"])
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_from_sde(name, grid, steps):
    sde = SDES[name]
    chain = DiscreteChain.from_sde(sde, steps, grid)
    assert len(chain) == steps and chain.prior_std == sde.prior_std
    for found, wanted in zip((chain.alpha, chain.sigma), sde.marginal(chain.times), strict=True):
        assert torch.equal(found, wanted)
    assert sde.t_min <= float(chain.times[0]) <= float(chain.times[-1]) == sde.t_max
    if grid == "time" and sde.t_max == 1.0 and sde.t_min <= 1 / steps:
        assert torch.equal(chain.times, torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    if grid == "half_log_snr" and steps > 2:
        assert float(chain.times[0]) == sde.t_min
        equal(chain.lambda_.diff(), chain.lambda_.diff().mean().expand(steps - 1), 1e-7)


def test_from_sde_at_a_later_time_and_at_given_times():
    sde = make_sde("vp")
    for grid in ("time", "half_log_snr"):
        assert float(DiscreteChain.from_sde(sde, 1000, grid, t_min=0.01).times[0]) == 0.01
    times = torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(DiscreteChain.from_sde(sde, 3, times).times, times.double())


@pytest.mark.parametrize("name", [name for name in CHAINS if name != "one step"])
def test_to_sde_runs_through_the_chain(name):
    chain = CHAINS[name]
    sde = chain.to_sde()
    assert (sde.t_min, sde.t_max, sde.prior_std) == (float(chain.times[0]), float(chain.times[-1]), chain.prior_std)
    alpha, sigma = sde.marginal(chain.times)
    equal(alpha, chain.alpha, 1e-14)
    equal(sigma, chain.sigma, 1e-13)
    torch.testing.assert_close(sde.half_log_snr(chain.times), chain.lambda_, rtol=0, atol=0)
    back = DiscreteChain.from_sde(sde, len(chain), chain.times)
    torch.testing.assert_close(back.lambda_, chain.lambda_, rtol=0, atol=1e-13)
    # Between the points: falling, invertible, with the SDE's two identities.
    t = torch.linspace(sde.t_min, sde.t_max, 701, dtype=torch.float64)
    assert bool((sde.half_log_snr(t).diff() < 0).all()) and bool((sde.slopes(t)[1] < 0).all())
    torch.testing.assert_close(sde.time_of(sde.half_log_snr(t)), t, rtol=0, atol=1e-9)
    step = 1e-7
    inside = (t[1:] + t[:-1]) / 2
    (alpha_a, sigma_a), (alpha_b, sigma_b) = sde.marginal(inside - step), sde.marginal(inside + step)
    alpha, sigma = sde.marginal(inside)
    f, g = sde.f(inside), sde.diffusion(inside)
    torch.testing.assert_close((alpha_b - alpha_a) / (2 * step), f * alpha, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close((sigma_b**2 - sigma_a**2) / (2 * step), 2 * f * sigma**2 + g**2, rtol=1e-3, atol=1e-5)


def test_to_sde_keeps_shape_and_dtype_and_goes_on_beyond_the_ends():
    sde = make_chain("linear", 100).to_sde()
    t = torch.rand(2, 3, dtype=torch.float32)
    alpha, sigma = sde.marginal(t)
    assert alpha.shape == sigma.shape == (2, 3) and alpha.dtype == sigma.dtype == sde.half_log_snr(t).dtype == torch.float32
    assert sde.half_log_snr(0.5).dtype == torch.float64 and sde.half_log_snr(0.5).shape == ()
    beyond = sde.half_log_snr(torch.tensor([0.0, 0.005, 0.01], dtype=torch.float64))
    assert bool((beyond.diff() < 0).all()) and bool(torch.isfinite(beyond).all())


def test_to_sde_approaches_the_sde():
    vp = make_sde("vp")
    t = torch.linspace(0.05, 0.99, 300, dtype=torch.float64)
    errors = [float((DiscreteChain.from_sde(vp, n).to_sde().half_log_snr(t) - vp.half_log_snr(t)).abs().max()) for n in (50, 100, 200)]
    assert errors[0] < 3e-3 and errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3


def test_solvers_run_on_a_chains_sde():
    from sde_gen.exact.mixtures import GaussianData

    data = GaussianData.correlated()
    sde = make_chain("linear", 1000).to_sde()
    out = sample(data.model(sde), (2000, 2), "dpm", steps=20, progress=False)
    torch.testing.assert_close(torch.cov(out.x.double().T), data.covariance, rtol=0, atol=0.08)


# subsets


def test_strided():
    chain = make_chain("linear", 1000)
    few = chain.strided(5)
    assert chain.index(few.times).tolist() == [0, 250, 500, 749, 999] and few.prior_std == 1.0
    assert torch.equal(few.alpha, chain.alpha[[0, 250, 500, 749, 999]])
    assert chain.index(chain.strided([3, 10, 999]).times).tolist() == [3, 10, 999]
    assert chain.index(chain.strided(1).times).tolist() == [999]
    assert torch.equal(chain.strided(1000).sigma, chain.sigma)


# what is refused


def test_bad_chains():
    one = torch.ones(3)
    with pytest.raises(ValueError, match=r"must both be \(N,\), got \(3,\) and \(2,\)"):
        DiscreteChain(one, torch.ones(2))
    with pytest.raises(ValueError, match="sigma must be positive"):
        DiscreteChain(one, torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match="does not from index 1 to"):
        DiscreteChain(one, torch.tensor([1.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="times must be 3 strictly rising"):
        DiscreteChain(one, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.1, 0.2]))
    with pytest.raises(ValueError, match=r"betas must be .* in \(0, 1\)"):
        DiscreteChain.from_betas([0.1, 1.0])
    with pytest.raises(ValueError, match="choose from linear, quadratic, cosine, constant, sigmoid"):
        make_chain("exponential", 10)
    with pytest.raises(ValueError, match="no setting beta_stop; it takes steps, beta_start, beta_end"):
        make_chain("linear", 10, beta_stop=0.1)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        make_chain("linear", 0)
    with pytest.raises(ValueError, match="at least 2 steps"):
        make_chain("linear", 1).to_sde()


def test_bad_arguments():
    chain, sde = make_chain("linear", 10), make_sde("vp")
    for call in (chain.one_step, chain.posterior_coefficients, chain.time):
        with pytest.raises(ValueError, match=r"indices must be in 0 \.\. 9, got -1"):
            call(-1)
    with pytest.raises(ValueError, match=r"in -1 \.\. 9, got 10"):
        chain.marginal(10)
    with pytest.raises(TypeError, match="must be an integer"):
        chain.marginal(0.5)
    with pytest.raises(ValueError, match="choose from fixed_large, fixed_small, learned"):
        chain.variance(1, "small")
    with pytest.raises(ValueError, match="learned_range"):
        chain.variance(1, "learned")
    with pytest.raises(ValueError, match="choose from time, half_log_snr"):
        DiscreteChain.from_sde(sde, 10, "karras")
    with pytest.raises(ValueError, match=r"t_min must be in"):
        DiscreteChain.from_sde(sde, 10, t_min=1.0)
    with pytest.raises(ValueError, match=r"times must be \(10,\)"):
        DiscreteChain.from_sde(sde, 10, torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"in 1 \.\. 10, got 11"):
        chain.strided(11)
    with pytest.raises(ValueError, match="strictly rising"):
        chain.strided([3, 3])
