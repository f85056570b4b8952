"""Every consumer takes every kind of model: equal results where equal is right, one clear TypeError where it cannot.

A wrapper that shifts the data by d is another law of which everything is known: along the VE SDE each state, sample, latent and bound is
the model's own, moved by d, whatever the solver. A normaliser, moments or prior that a wrapper loses, or keeps from the wrong law, shows.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.conditions import make_condition
from sde_gen.data import Normalizer
from sde_gen.discrete import ChainView, chain_of
from sde_gen.exact.mixtures import MixtureData
from sde_gen.guidance import GUIDANCE, ClassifierFree, Combine, guide
from sde_gen.inverse import MEASURED, METHODS, Gaussian, Matrix, Measurement
from sde_gen.models.denoiser import Denoiser, Prediction, Wrapper
from sde_gen.models.moments import Moments
from sde_gen.randomness import NoiseStream
from sde_gen.sampling.fitted import find_fitted, law_of
from sde_gen.solvers import SOLVERS, FixedStepSolver, Graphed, Run, make_solver

VE = sde_gen.make_sde("ve", sigma_min=0.02, sigma_max=8.0)
SCALE, CENTRE, D = 3.0, 20.0, 2.0
"""The data's units: x = CENTRE + SCALE z. D: the shift, in normalised units."""
DATA = MixtureData(
    torch.tensor([0.7, 0.3]),
    torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=torch.float64),
    torch.stack((0.2 * torch.eye(2, dtype=torch.float64), 0.1 * torch.eye(2, dtype=torch.float64))),
)
COUNT = 5


def base() -> sde_gen.ScoreModel:
    units = Normalizer(torch.full((2,), CENTRE), torch.full((2,), SCALE))
    mean, covariance = DATA.moments()
    return sde_gen.ScoreModel(
        DATA.score(VE), VE, "score", normalizer=units, moments=Moments(mean, covariance=covariance), prior="matched", data_std=1.0
    )


class Counted(Wrapper):
    """Counts its predictions and changes nothing."""

    same_law = True

    def __init__(self, model: Denoiser) -> None:
        super().__init__(model)
        self.calls = 0

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        self.calls += len(x)
        return super().predict(x, t, **cond)


class Shifted(Wrapper):
    """The law of z + D where the model's is that of z, by two calls in the place of one."""

    same_law = False

    def __init__(self, model: Denoiser) -> None:
        moments = model.moments
        assert moments is not None
        super().__init__(model, Moments(moments.mean + D, covariance=DATA.moments()[1]))
        self.cost = 2 * model.cost

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        moved = x - D  # alpha = 1
        return Prediction(0.5 * (self.model.denoise(moved, t, **cond) + self.model.denoise(moved, t, **cond)) + D)


SPECS = {
    "numbers": {"kind": "numbers", "size": 2, "mean": [2000.0, 0.0], "std": [20.0, 1.0]},
    "series": {"kind": "sequence", "features": 1, "length": 3},
    "field": {"kind": "map", "grid": [2, 2]},
    "label": {"kind": "label", "classes": 3},
}


class Told(nn.Module):
    """A network that is told its shift by conditions of every kind, a quarter of it by each; of one that is not given it takes the part as
    0, but for the label, which says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = {name: make_condition(name, spec, 4, (4, 4)) for name, spec in SPECS.items()}

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        shift = x.new_zeros(len(x))
        for name, value in cond.items():
            value = self.encoders[name].fit(value)
            if name == "numbers":
                value = value - torch.tensor([2000.0, 0.0]).to(value)
            if name != "label":
                shift = shift + value.flatten(1).nan_to_num().sum(1).to(shift)
        return DATA.denoise_at(x - shift[:, None], VE, c) + shift[:, None]


def told(normalizer: Normalizer | None = None, network: nn.Module | None = None) -> sde_gen.ScoreModel:
    mean, covariance = DATA.moments()
    moments = Moments(mean + D, covariance=covariance)  # those under the conditions that it is given here
    units = normalizer or base().normalizer
    return sde_gen.ScoreModel(network or Told(), VE, "data", normalizer=units, moments=moments, prior="matched", data_std=1.0)


class Guided(ClassifierFree):
    """Guidance that drops the label, which says nothing, so that both branches are the conditional model, of known moments."""

    def __init__(self, model: Denoiser, strength: float = 3.0) -> None:
        super().__init__(model, strength, drop=("label",))
        self.moments, self.prior_name = model.moments, model.prior_name


def combined() -> Denoiser:
    """Half of the score twice, by one call of two rows for each."""
    one = given(True, 1)
    model = told()
    return Combine([(0.5, model, one), (0.5, model, one)], moments=model.moments)


KINDS: dict[str, tuple[Callable[[], Denoiser], float, bool]] = {
    "transparent": (lambda: Wrapper(base()), 0.0, False),
    "counted": (lambda: Counted(base()), 0.0, False),
    "wrapped twice": (lambda: Wrapper(Counted(base())), 0.0, False),
    "shifted": (lambda: Shifted(base()), D, False),
    "conditional": (told, D, True),
    "guided by strength 1": (lambda: guide(told(), 1.0), D, True),
    "guided": (lambda: Guided(told()), D, True),
    "combined": (combined, D, False),
}
"""A model, the shift of its law, and whether it must be told of it."""


def given(conditional: bool, count: int = COUNT) -> dict[str, Tensor] | None:
    if not conditional:
        return None
    row = {
        "numbers": torch.tensor([2000.0 + D / 2, -D / 4], dtype=torch.float64),
        "series": torch.tensor([[D / 8], [torch.nan], [D / 8]]),
        "field": torch.full((1, 2, 2), D / 8),
        "label": torch.tensor(2),
    }
    return {name: value.expand(count, *value.shape).contiguous() for name, value in row.items()}


def points(shift: float, count: int = COUNT) -> Tensor:
    """Data in their own units."""
    return CENTRE + SCALE * (DATA.sample(count, seed=3) + shift)


def drawn(name: str) -> Callable[[Denoiser, float, bool], Tensor]:
    def draw(model: Denoiser, shift: float, conditional: bool) -> Tensor:
        # An error judged relative to the state would see the shift.
        options = {"ode": {"rtol": 1e-6, "atol": 1e-6}, "adaptive_sde": {"rtol": 1e-9, "atol": 0.1}}.get(name, {})
        z = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        start = 8.0 * z + shift
        steps = None if SOLVERS[name].adaptive else 12
        out = sde_gen.sample(model, (COUNT, 2), name, steps, x_init=start, cond=given(conditional), dtype=torch.float64, **options)
        return out.x - SCALE * shift

    return draw


def _log_likelihood(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    found = sde_gen.log_likelihood(model, points(shift), cond=given(conditional))
    return torch.cat((found.log_prob[:, None], found.latent - shift), 1)


def _elbo(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    found = sde_gen.elbo_continuous(model, points(shift), samples=8, cond=given(conditional))
    return torch.tensor([found.decoder.value, found.diffusion.value], dtype=torch.float64)


def _chain_elbo(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    found = sde_gen.elbo(model, points(shift), chain_of(VE, 10), cond=given(conditional))
    return torch.tensor([found.decoder.value, found.diffusion.value], dtype=torch.float64)


def _bits_per_dim(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    images = torch.arange(2 * COUNT).reshape(COUNT, 2) % 8 + 16
    return sde_gen.bits_per_dim(model, images + round(SCALE * shift), levels=64, seed=1, cond=given(conditional)).each


def _encode(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    return sde_gen.encode(model, points(shift), cond=given(conditional), rtol=1e-7, atol=1e-7) - shift


def _interpolate(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    # Spherical interpolation depends on the origin: its ends alone move with the law.
    x = points(shift, 2 * COUNT)
    path = sde_gen.interpolate(model, x[:COUNT], x[COUNT:], 3, cond=given(conditional), rtol=1e-7, atol=1e-7)
    return path[[0, 2]] - SCALE * shift


def _mix(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    x = points(shift, 2 * COUNT)
    return sde_gen.mix(model, x[:COUNT], x[COUNT:], 2, t=0.5, steps=5, cond=given(conditional)) - SCALE * shift


def _fit_grid(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    cond = given(conditional, 6)
    fitted = sde_gen.fit_grid(model, "dpm", 3, (2,), samples=6, batch_size=4, iterations=2, cond=cond)
    out = sde_gen.sample(model, (6, 2), "dpm", 3, cond=cond)
    assert out.fitted and model.fitted == {("dpm", 3, tuple(sorted(cond or {})), law_of(model)): fitted}
    return torch.tensor([fitted.default_error], dtype=torch.float64)


def _reverse_sde(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    x = DATA.sample(COUNT) + shift
    return sde_gen.ReverseSDE(model, **(given(conditional) or {})).drift(x, 0.5)


def _chain_view(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    x, view = DATA.sample(COUNT) + shift, ChainView(model, chain_of(VE, 10))
    return torch.cat((view.reverse(x, 4, **(given(conditional) or {}))[0] - shift, view.score(x, 4, **(given(conditional) or {}))))


def _graphed(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    noise = NoiseStream(0, 0, COUNT, (2,), torch.float64, torch.device("cpu"))
    run = Run(model, noise, torch.zeros(COUNT, dtype=torch.int64), given(conditional) or {})
    solver = make_solver("ancestral")
    assert isinstance(solver, FixedStepSolver)
    out = Graphed(solver).solve(run, 8.0 * noise.draw() + shift, VE.t_max, VE.t_min, 6, "karras")
    assert (run.nfe == 6 * model.cost).all()
    return out - shift


def _views(model: Denoiser, shift: float, conditional: bool) -> Tensor:
    x, cond = DATA.sample(COUNT) + shift, given(conditional) or {}
    t = torch.full((COUNT,), 0.4, dtype=torch.float64)
    return torch.cat([view(x, t, **cond) for view in (model.score, model.noise, model.velocity)])


CONSUMERS = {
    **{f"sample {name}": drawn(name) for name in SOLVERS},
    **{"log_likelihood": _log_likelihood, "bits_per_dim": _bits_per_dim, "elbo": _chain_elbo, "elbo_continuous": _elbo},
    **{"encode": _encode, "interpolate": _interpolate, "mix": _mix, "fit_grid": _fit_grid},
    **{"ReverseSDE": _reverse_sde, "ChainView": _chain_view, "Graphed": _graphed, "views": _views},
}
LOOSE = {
    **{"sample ode": 1e-4, "encode": 1e-5, "interpolate": 1e-4, "log_likelihood": 1e-3, "bits_per_dim": 1e-3},
    "sample angle": 0.1,  # under a condition it does not skip the first part of the way
}
"""Where steps are chosen by tolerances relative to the state, the shift shows."""
_expected: dict[str, Tensor] = {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_consumer_takes_every_kind_of_model(consumer: str, kind: str) -> None:
    make, shift, conditional = KINDS[kind]
    consume = CONSUMERS[consumer]
    if consumer not in _expected:
        _expected[consumer] = consume(base(), 0.0, False)
    found, expected = consume(make(), shift, conditional), _expected[consumer]
    if not shift:
        assert torch.equal(found, expected)
        return
    torch.testing.assert_close(found, expected, rtol=0, atol=LOOSE.get(consumer, 1e-6))


RULES: dict[str, dict] = {
    "cfg": {"strength": 3.0},
    "cfgpp": {"strength": 0.6},
    "apg": {"strength": 3.0, "eta": 0.5, "radius": 0.3, "momentum": -0.5},
    "cfg_zero": {"strength": 3.0},
}


def test_every_rule_of_guidance_with_every_solver_and_the_likelihood() -> None:
    """Branches that do not differ are the conditional model, whatever the rule and the strength."""
    assert set(RULES) == set(GUIDANCE)
    plain, cond = sde_gen.ScoreModel(Told(), VE, "data", normalizer=base().normalizer), given(True)
    for solver in SOLVERS:
        adaptive, common = SOLVERS[solver].adaptive, {"cond": cond, "dtype": torch.float64, "progress": False}
        steps = None if adaptive else 5
        if solver == "angle":  # starts from moments, of which guidance knows none
            continue
        expected = sde_gen.sample(plain, (COUNT, 2), solver, steps, **common)
        for rule, options in RULES.items():
            if adaptive and rule in ("cfgpp", "apg"):  # which depend on the steps
                continue
            found = sde_gen.sample(guide(plain, drop=("label",), rule=rule, **options), (COUNT, 2), solver, steps, **common)
            torch.testing.assert_close(found.x, expected.x, rtol=1e-9, atol=1e-9, msg=lambda text, at=(solver, rule): f"{at}: {text}")
            assert torch.equal(found.nfe, 2 * expected.nfe), (solver, rule)
    expected = sde_gen.log_likelihood(plain, points(D), cond=cond).log_prob
    for rule in ("cfg", "cfg_zero"):
        found = sde_gen.log_likelihood(guide(plain, 3.0, drop=("label",), rule=rule), points(D), cond=cond).log_prob
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_measurement_that_says_nothing_changes_nothing_under_any_solver_and_dtype() -> None:
    """Methods of inverse problems with the noise a million times the data's spread, on a model with conditions."""
    measurement = Measurement(Matrix(torch.tensor([[1.0, 2.0]])), Gaussian(1e6 * SCALE))
    y, cond = torch.full((COUNT, 1), 3.0 * CENTRE), given(True)
    for solver in SOLVERS:
        if solver == "angle" or SOLVERS[solver].adaptive:  # the one starts from moments, which a posterior has none of
            continue
        for dtype, names in ((torch.float64, ("mmps", "tmpd", "pigdm", "dps", "diffpir", "twisted")), (torch.float32, ("mmps",))):
            common = {"steps": 3, "dtype": dtype, "progress": False}
            expected = sde_gen.sample(told(), (COUNT, 2), solver, cond=cond, **common)
            for name in names:
                wrapper = METHODS[name](told(), measurement)
                found = sde_gen.sample(wrapper, (COUNT, 2), solver, cond={**(cond or {}), MEASURED: y.to(dtype)}, **common)
                assert found.x.dtype == dtype and torch.equal(found.nfe, expected.nfe), (solver, name)
                loose = 1e-4 if dtype == torch.float64 else 0.05
                torch.testing.assert_close(found.x, expected.x, rtol=0, atol=loose, msg=lambda text, at=(solver, name): f"{at}: {text}")


UNITS = {
    "of its own by feature": Normalizer(torch.tensor([1e4, -2.0]), torch.tensor([50.0, 0.25])),
    "none": Normalizer(torch.zeros(2), torch.ones(2), kind="identity"),
}


@pytest.mark.parametrize("units", UNITS)
def test_a_normaliser_changes_the_units_of_guided_samples_and_nothing_else(units: str) -> None:
    usual, other, cond = Guided(told()), Guided(told(UNITS[units])), given(True)
    a, b = usual.normalizer, other.normalizer
    assert a is not None and b is not None
    for solver in SOLVERS:
        common = {"steps": None if SOLVERS[solver].adaptive else 4, "cond": cond, "dtype": torch.float64, "progress": False}
        x, y = (sde_gen.sample(model, (COUNT, 2), solver, **common).x for model in (usual, other))
        torch.testing.assert_close(b.encode(y), a.encode(x), rtol=0, atol=1e-9, msg=lambda text, at=solver: f"{at}: {text}")
    z = DATA.sample(COUNT) + D
    found = [sde_gen.log_likelihood(model, model.normalizer.decode(z), cond=cond).log_prob for model in (usual, other)]
    torch.testing.assert_close(found[1] - found[0], (b.log_det(z) - a.log_det(z)), rtol=0, atol=1e-6, check_dtype=False)


class Narrow(Told):
    """As a network whose weights are of a dtype: it gets and gives that one, and works in float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones((), dtype=dtype)), set()

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        self.seen.add((x.dtype, c.dtype))
        return super().forward(x.double(), c.double(), **cond).to(x.dtype)


@pytest.mark.parametrize(
    ("weights", "clock"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_states_are_never_narrower_than_float32_whatever_the_networks_dtype(weights: torch.dtype, clock: torch.dtype) -> None:
    network, cond = Narrow(weights), given(True)
    guided, exact = Guided(told(network=network)), Guided(told())
    for solver in SOLVERS:
        common = {"steps": None if SOLVERS[solver].adaptive else 4, "cond": cond, "progress": False}
        out = sde_gen.sample(guided, (COUNT, 2), solver, dtype=torch.float32, **common).x
        assert out.dtype == torch.float32, solver
        if SOLVERS[solver].adaptive:  # whose steps follow from rounded errors
            assert bool(torch.isfinite(out).all())
            continue
        wanted = sde_gen.sample(exact, (COUNT, 2), solver, dtype=torch.float32, **common).x
        tolerance = 1.0 if weights == torch.bfloat16 else 1e-2
        torch.testing.assert_close(out, wanted, rtol=0, atol=tolerance, msg=lambda text, at=solver: f"{at}: {text}")
    assert network.seen == {(weights, clock)}
    found = sde_gen.log_likelihood(guided, points(D), cond=cond, rtol=1e-3, atol=1e-3)
    assert found.log_prob.dtype == torch.float64 and bool(torch.isfinite(found.log_prob).all())


def test_network_evaluations_are_counted_through_wrappers() -> None:
    counted = Counted(base())
    for name in SOLVERS:
        counted.calls = 0
        out = sde_gen.sample(counted, (COUNT, 2), name, None if SOLVERS[name].adaptive else 6)
        assert int(out.nfe.sum()) == counted.calls, name
        if not SOLVERS[name].adaptive:
            double = sde_gen.sample(Shifted(base()), (COUNT, 2), name, 6)
            assert torch.equal(double.nfe, 2 * out.nfe), name
    likelihood = sde_gen.log_likelihood(Shifted(base()), points(D))
    assert (likelihood.nfe % 2 == 0).all()


def test_a_law_that_is_another_keeps_nothing_that_was_known_of_the_models() -> None:
    class Silent(Wrapper):
        same_law = False

        def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
            return self.model.predict(x, t, **cond)

    model = base()
    sde_gen.fit_grid(model, "ddim", 2, (2,), samples=4, iterations=1)
    silent, same = Silent(model), Wrapper(model)
    assert silent.moments is None and find_fitted(silent, "ddim", 2) is None and type(silent.prior).__name__ == "SDEPrior"
    assert find_fitted(same, "ddim", 2) is find_fitted(model, "ddim", 2) is not None
    assert same.moments is model.moments and same.fitted is model.fitted and type(same.prior).__name__ == "MatchedPrior"
    assert silent.normalizer is model.normalizer and silent.sde is VE and silent.data_std == 1.0
    assert Shifted(model).prior.log_prob(torch.full((1, 2), D)) > model.prior.log_prob(torch.full((1, 2), 4 * D))


def test_what_a_subclass_forgets_is_said() -> None:
    class NoConstructor(Denoiser):
        def __init__(self) -> None:
            self.sde = VE

        def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
            return Prediction(x)

    class NetworkFirst(NoConstructor):
        def __init__(self) -> None:
            self.network = nn.Linear(2, 2)

    class NoNormalizer(NoConstructor):
        def __init__(self) -> None:
            Denoiser.__init__(self, VE)  # type: ignore[call-arg]

    for kind in (NoConstructor, NetworkFirst):
        with pytest.raises(TypeError, match=rf"{kind.__name__}.__init__ must call super\(\).__init__"):
            kind()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'normalizer'"):
        NoNormalizer()
    with pytest.raises(TypeError, match=r"Unsaid overrides predict: it must say `same_law"):

        class Unsaid(Wrapper):
            def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
                return Prediction(x)

    with pytest.raises(TypeError, match="wraps a Denoiser such as ScoreModel, got Linear"):
        Wrapper(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="moments of its own would contradict"):
        Wrapper(base(), Moments(torch.zeros(2), variance=torch.ones(2)))


def test_a_consumer_that_cannot_says_so_in_one_line(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"save takes a ScoreModel.*got Counted: save the model that it wraps") as caught:
        sde_gen.save(Counted(base()), tmp_path / "checkpoint")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_two_threads_sample_one_model() -> None:
    """The tables of two runs along other times are in use at the same time."""
    import threading

    model, found = base(), {}

    def draw(steps: int) -> None:
        for _ in range(5):
            found[steps] = sde_gen.sample(model, (COUNT, 2), "dpm", steps, progress=False).x

    threads = [threading.Thread(target=draw, args=(steps,)) for steps in (20, 21, 22, 23)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for steps in (20, 21, 22, 23):
        assert torch.equal(found[steps], sde_gen.sample(base(), (COUNT, 2), "dpm", steps, progress=False).x)


@pytest.mark.parametrize("solver", ["em", "ode", "angle", "torchsde"])
def test_a_prediction_that_is_none_is_named(solver: str) -> None:
    class OneRow(Wrapper):
        same_law = True

        def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
            return Prediction(self.model.denoise(x, t, **cond)[:1])

    class Bare(OneRow):
        def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
            return x  # type: ignore[return-value]

    with pytest.raises(ValueError, match=r"OneRow.predict gave \(1, 2\) torch.float64 as denoised where the state is \(5, 2\)"):
        sde_gen.sample(OneRow(base()), (COUNT, 2), solver, dtype=torch.float64, progress=False)
    with pytest.raises(TypeError, match=r"Bare.predict must return a Prediction\(denoised, ...\), got Tensor"):
        sde_gen.sample(Bare(base()), (COUNT, 2), solver, progress=False)
    with pytest.raises(TypeError, match="overrides denoise, which solvers do not ask: override predict"):

        class View(Wrapper):
            def denoise(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Tensor:
                return x

    with pytest.raises(TypeError, match="model must be a Denoiser such as ScoreModel"):
        sde_gen.sample(nn.Linear(2, 2), (COUNT, 2), solver)  # type: ignore[arg-type]
