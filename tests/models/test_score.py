"""ScoreModel: one denoiser seen through every prediction, clock and rank."""

import math

import pytest
import torch
from toys import FREE_CLOCKS, FREE_PREDICTIONS, LinearPath, all_sdes

from sde_gen import Moments, ScoreModel, make_network, make_sde, sample
from sde_gen.exact.mixtures import GaussianData, MixtureData, column, marginal
from sde_gen.models.score import CLOCKS, PREDICTIONS

SDES = all_sdes()
STD = 0.7
GENERATOR_SEED = 0


def gaussian(shape: tuple[int, ...]) -> GaussianData:
    """Correlated Gaussian data of any shape."""
    size = math.prod(shape)
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    factor = torch.randn(size, size, dtype=torch.float64, generator=generator) / size**0.5
    return GaussianData(torch.randn(shape, dtype=torch.float64, generator=generator), factor @ factor.T + 0.1 * torch.eye(size))


def slopes(sde, t):
    """alpha' and sigma' by reverse differentiation, which the package does not use."""
    t = t.detach().double().requires_grad_()
    alpha, sigma = sde.marginal(t)
    return tuple(torch.autograd.grad((value + 0 * t).sum(), t, retain_graph=True)[0] for value in (alpha, sigma))


def output_of(prediction: str, sde, data: MixtureData):
    """The network that is exact for `prediction`, by the definition of each; it is told the time."""

    def network(x, c):
        ones = x.ndim - 1
        alpha, sigma = (column(value, ones) for value in marginal(sde, c))
        scaled = x
        if prediction == "edm":
            x = x * torch.sqrt(alpha**2 * STD**2 + sigma**2)  # undo the scaling of the input
        x_0 = data.denoise_at(x, sde, c)
        noise = (x - alpha * x_0) / sigma
        if prediction == "flow":
            alpha_slope, sigma_slope = (column(value, ones) for value in slopes(sde, c))
            return alpha_slope * x_0 + sigma_slope * noise
        if prediction == "edm":  # alpha = 1 is Karras et al. 2022, table 1
            total = alpha**2 * STD**2 + sigma**2
            return (x_0 - alpha * STD**2 / total.sqrt() * scaled) * total.sqrt() / (sigma * STD)
        known = {"noise": noise, "data": x_0, "v": alpha * noise - sigma * x_0, "score": -noise / sigma, "scaled_score": -noise}
        return known[prediction]

    return network


def noisy(data, sde, t, seed=1):
    """Draws of x_t for t (B,)."""
    x_0 = data.sample(len(t), seed)
    alpha, sigma = (column(value, x_0.ndim - 1) for value in marginal(sde, t))
    return alpha * x_0 + sigma * torch.randn(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def views(model, x, t):
    return {"score": model.score(x, t), "noise": model.noise(x, t), "denoise": model.denoise(x, t), "velocity": model.velocity(x, t)}


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("prediction", FREE_PREDICTIONS)
@pytest.mark.parametrize("shape", [(2,), (1, 2, 3), (2, 1, 2, 2)])
def test_every_view_of_every_prediction_is_exact(name, prediction, shape):
    sde, data = SDES[name], gaussian(shape)
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    x = noisy(data, sde, t)
    model = ScoreModel(output_of(prediction, sde, data), sde, prediction=prediction, data_std=STD)
    sigma = column(marginal(sde, t)[1], x.ndim - 1)
    alpha_slope, sigma_slope = (column(value, x.ndim - 1) for value in slopes(sde, t))
    score = data.score_at(x, sde, t)
    x_0 = data.denoise_at(x, sde, t)
    exact = {"score": score, "noise": -sigma * score, "denoise": x_0, "velocity": alpha_slope * x_0 - sigma_slope * sigma * score}
    for key, value in views(model, x, t).items():
        scale = float(exact[key].abs().max())
        torch.testing.assert_close(value, exact[key], rtol=1e-10, atol=1e-10 * max(1.0, scale), msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("prediction", FREE_PREDICTIONS)
def test_a_time_may_be_a_number_a_scalar_or_one_for_each_sample(name, prediction):
    sde, data = SDES[name], gaussian((1, 2, 2))
    model = ScoreModel(output_of(prediction, sde, data), sde, prediction=prediction, data_std=STD)
    t = torch.full((5,), 0.37, dtype=torch.float64)
    x = noisy(data, sde, t)
    expected = views(model, x, t)
    for time in (0.37, torch.tensor(0.37, dtype=torch.float64), t[:1]):
        for key, value in views(model, x, time).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-11, atol=1e-11)
    planned = model.planned([0.9, 0.37, 0.1])
    torch.testing.assert_close(model.denoise(x, planned[0.37]), expected["denoise"], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(model.denoise(x, 0.5), model.denoise(x, torch.tensor(0.5, dtype=torch.float64)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SDES)
def test_velocity_moves_the_flow_map(name):
    sde, data = SDES[name], GaussianData.correlated()
    x, t, h = data.sample(6), 0.4, 1e-5
    numerical = (data.flow_map(x, sde, t, t + h) - data.flow_map(x, sde, t, t - h)) / (2 * h)
    torch.testing.assert_close(data.model(sde).velocity(x, t), numerical, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("clock", FREE_CLOCKS)
def test_the_network_sees_its_clock(name, clock):
    sde, seen = SDES[name], []
    model = ScoreModel(lambda x, c: seen.append((x, c)) or x, sde, clock=clock)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = marginal(sde, t)
    expected = {"time": t, "half_log_snr": torch.log(alpha / sigma), "c_noise": torch.log(sigma / alpha) / 4}[clock]
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model.denoise(x, t)
    model.denoise(x, 0.5)
    model.denoise(x.float(), 0.5)
    model.denoise(x, torch.tensor(0.5, dtype=torch.float64))
    for (got, c), wanted in zip(seen, (expected, *[expected[1].expand(3)] * 3), strict=True):
        assert c.shape == (3,) and c.dtype == got.dtype
        torch.testing.assert_close(c.double(), wanted, rtol=1e-6 if c.dtype == torch.float32 else 1e-12, atol=1e-12)
    assert torch.equal(seen[0][0], x)  # the input is not scaled unless asked


def test_a_clock_and_a_prediction_may_be_functions_and_have_the_fields_names():
    sde = make_sde("vp")
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def network(x, c):
        return torch.tanh(x + c[:, None])

    for given, same in (({"clock": CLOCKS["half_log_snr"]}, {"clock": "half_log_snr"}), ({"clock": "edm"}, {"clock": "c_noise"})):
        model, named = ScoreModel(network, sde, **given), ScoreModel(network, sde, **same)
        assert model.settings() == named.settings() and torch.equal(model.score(x, 0.4), named.score(x, 0.4))
    own = ScoreModel(network, sde, clock=lambda sde, t: 10 * t, prediction=lambda sde, t, std: (0 * t, std * t), data_std=2.0)
    torch.testing.assert_close(own.denoise(x, 0.4), 0.8 * torch.tanh(x + 4.0))
    assert ScoreModel(network, sde, prediction="epsilon").prediction == "noise"
    with pytest.raises(ValueError, match=r"unknown prediction 'eps'; choose from noise, .* \(also epsilon, x_0"):
        ScoreModel(network, sde, prediction="eps")


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16, torch.float16])
def test_a_narrow_network_is_asked_in_its_dtype_and_told_the_clock_in_float32(narrow):
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x, c):
            seen.append((x.dtype, c.dtype, float(c[0])))
            return x * self.weight

    sde = make_sde("ddpm")
    model = ScoreModel(Net(), sde, clock="index").to(narrow)
    for dtype in (torch.float32, torch.float64):
        assert model.denoise(torch.ones(2, 2, dtype=dtype), float(sde.points.times[997])).dtype == dtype
        assert model.denoise(torch.ones(2, 2, dtype=dtype), sde.points.times[[997, 777]]).dtype == dtype
    assert seen == [(narrow, torch.float32, 997.0)] * 4
    out = sample(model, (2, 2), "ddim", steps=3)
    assert out.x.dtype == torch.float32 and bool(torch.isfinite(out.x).all())
    assert sample(model, (2, 2), "ddim", steps=3, dtype=torch.float64).x.dtype == torch.float64


@pytest.mark.parametrize("cast", ["float", "half", "bfloat16"])
def test_a_cast_of_the_model_leaves_its_moments_as_they_are(cast):
    moments = Moments(torch.tensor([281.24, 0.1]), covariance=torch.eye(2, dtype=torch.float64) / 3)
    model = ScoreModel(torch.nn.Linear(2, 2), make_sde("vp"), moments=moments)
    before = [value.clone() for value in moments.buffers()]
    getattr(model, cast)()
    assert all(torch.equal(one, other) for one, other in zip(moments.buffers(), before, strict=True))
    assert next(model.network.parameters()).dtype == {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}[cast]


def test_a_network_without_gradients_is_named():
    sde = make_sde("vp")
    x = torch.ones(2, 2, requires_grad=True)
    for prediction in ("noise", "data"):
        model = ScoreModel(lambda x, c: x.detach(), sde, prediction=prediction)
        with pytest.raises(TypeError, match="no gradient with respect to its input"):
            model.denoise(x, 0.5)
        model.denoise(x.detach(), 0.5)
        model.depends_on_state = False
        model.denoise(x, 0.5)


def test_labels_are_checked_where_they_come_in():
    network = make_network("mlp", (2,), conditions=3, width=16, depth=1)
    model = ScoreModel(network, make_sde("vp"), "edm", "half_log_snr", data_std=1.0)
    sample(model, (2, 2), "ddim", 2, cond={"label": torch.tensor([0, 3]).numpy()})
    for label, error, message in (
        (torch.tensor([0, 4]), ValueError, r"condition 'label' must be in 0 .. 2 \(3: not given\), got 0 .. 4"),
        (torch.tensor([-1, 0]), ValueError, r"got -1 .. 0"),
        (torch.tensor([0, 1, 2]), ValueError, r"first dimension 2, got shape \(3,\)"),
        ([0, 1], TypeError, "condition 'label' must be a tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            sample(model, (2, 2), "ddim", 2, cond={"label": label})
    plain = ScoreModel(make_network("mlp", (2,), width=16, depth=1), make_sde("vp"), "edm", "half_log_snr", data_std=1.0)
    with pytest.raises(ValueError, match="the network takes no conditions, got 'label'"):
        sample(plain, (2, 2), "ddim", 2, cond={"label": torch.tensor([0, 1])})


def test_a_clock_and_a_prediction_may_be_registered(monkeypatch):
    monkeypatch.setitem(CLOCKS, "own", lambda sde, t: (1000 * t).round())

    def negative_noise(sde, t, std):
        alpha, sigma = sde.marginal(t)
        return 1 / alpha, sigma / alpha

    monkeypatch.setitem(PREDICTIONS, "negative_noise", negative_noise)
    seen = []
    x = torch.ones(2, 2)
    model = ScoreModel(lambda x, c: seen.append(c) or -x, make_sde("vp"), prediction="negative_noise", clock="own")
    torch.testing.assert_close(model.noise(x, 0.25), x)
    assert seen[0].tolist() == [250.0, 250.0]


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(
    "prediction, scale_input, scaled", [("edm", None, True), ("edm", False, False), ("v", True, True), ("noise", None, False)]
)
def test_the_network_sees_scaled_input(name, prediction, scale_input, scaled):
    sde, seen = SDES[name], []
    model = ScoreModel(lambda x, c: seen.append(x) or x, sde, prediction=prediction, data_std=STD, scale_input=scale_input)
    x = torch.ones(1, 2, dtype=torch.float64)
    model.denoise(x, 0.6)
    model.denoise(x, torch.tensor([0.6], dtype=torch.float64))
    alpha, sigma = marginal(sde, 0.6)
    expected = x / torch.sqrt(alpha**2 * STD**2 + sigma**2) if scaled else x
    for got in seen:
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", SDES)
def test_edm_output_has_unit_variance_on_matching_data(name):
    # Karras et al. 2022, appendix B.6: the target of F has unit variance at every noise level.
    sde = SDES[name]
    for t in (sde.t_min + 1e-3, 0.5, 0.95):
        alpha, sigma = marginal(sde, t)
        scales = ScoreModel(lambda x, c: x, sde, prediction="edm", data_std=STD).scales(torch.tensor(t, dtype=torch.float64))
        variance = ((1 - scales.skip * alpha) ** 2 * STD**2 + (scales.skip * sigma) ** 2) / scales.out**2
        torch.testing.assert_close(variance, torch.ones_like(variance))
        torch.testing.assert_close(scales.c_in**2 * (alpha**2 * STD**2 + sigma**2), torch.ones_like(variance))


def test_learned_range_splits_the_channels():
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = ScoreModel(lambda x, c: torch.cat((2 * x, torch.full_like(x, -0.5)), dim=1), make_sde("vp"), "data", variance="learned_range")
    found = model.predict(x, 0.5)
    torch.testing.assert_close(found.denoised, 2 * x)
    torch.testing.assert_close(found.variance_fraction, torch.full_like(x, 0.25))
    assert ScoreModel(lambda x, c: x, make_sde("vp")).predict(x, 0.5).variance_fraction is None


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6])
def test_learned_range_needs_exactly_twice_the_channels(channels):
    model = ScoreModel(lambda x, c: x.new_zeros(2, channels, 3), make_sde("vp"), "data", variance="learned_range")
    with pytest.raises(ValueError, match="output has shape"):
        model.predict(torch.zeros(2, 2 if channels != 5 else 3, 3), 0.5)


@pytest.mark.parametrize("prediction", FREE_PREDICTIONS)
def test_float32_in_float32_out_and_close_to_float64(prediction):
    for name, sde in SDES.items():
        data = GaussianData.correlated()
        model = ScoreModel(output_of(prediction, sde, data), sde, prediction=prediction, data_std=STD)
        t = torch.full((8,), 0.5, dtype=torch.float64)
        x = noisy(data, sde, t)
        for time in (0.5, t.float()):
            single = model.denoise(x.float(), time)
            assert single.dtype == torch.float32
            message = lambda text, name=name: f"{name}: {text}"  # noqa: E731
            torch.testing.assert_close(single.double(), model.denoise(x, 0.5), rtol=1e-4, atol=1e-4, msg=message)


def test_a_half_precision_network_gives_back_the_states_dtype():
    model = ScoreModel(lambda x, c: x.bfloat16(), make_sde("vp"))
    assert model.denoise(torch.ones(2, 2), 0.5).dtype == torch.float32


def test_conditions_reach_the_network():
    seen = {}
    model = ScoreModel(lambda x, c, **cond: seen.update(cond) or x, make_sde("vp"))
    label = torch.tensor([1, 2])
    for view in (model.score, model.noise, model.denoise, model.velocity, model.predict, model):
        seen.clear()
        view(torch.ones(2, 2), 0.5, label=label)
        assert seen["label"] is label


def test_states_and_derivatives():
    network = torch.nn.Linear(2, 2)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, c):
            return self.inner(x)

    model = ScoreModel(Net(), make_sde("vp"), moments=Moments(torch.zeros(2), variance=torch.ones(2)))
    assert {"network.inner.weight", "network.inner.bias"} <= set(model.state_dict())
    x = torch.ones(3, 2, requires_grad=True)
    for time in (0.5, torch.full((3,), 0.5)):
        model.denoise(x, time).sum().backward()
    assert x.grad is not None and network.weight.grad is not None


@pytest.mark.parametrize(
    "settings, error, match",
    [
        ({"network": 3}, TypeError, "network must be callable, got int"),
        ({"sde": "vp"}, TypeError, "sde must be an SDE"),
        ({"prediction": "x0"}, ValueError, "unknown prediction 'x0'; choose from noise, data, v, flow, score, scaled_score, edm"),
        ({"clock": "sigma"}, ValueError, "unknown clock 'sigma'; choose from time, half_log_snr, c_noise"),
        ({"variance": "fixed"}, ValueError, "unknown variance 'fixed'; choose from None, learned_range"),
        ({"prior": "normal"}, ValueError, "unknown prior 'normal'; choose from sde, matched"),
        ({"prediction": "edm"}, ValueError, "need data_std"),
        ({"scale_input": True}, ValueError, "need data_std"),
        ({"prior": "matched"}, ValueError, "needs moments or data_std"),
        ({"data_std": 0.0}, ValueError, "data_std must be positive and finite, got 0.0"),
        ({"data_std": float("nan")}, ValueError, "data_std must be positive and finite"),
        ({"data_std": "1"}, TypeError, "data_std must be a number"),
    ],
)
def test_bad_settings(settings, error, match):
    with pytest.raises(error, match=match) as caught:
        ScoreModel(**{"network": lambda x, c: x, "sde": make_sde("vp"), **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "output, error, match",
    [
        (lambda x: x[:1], ValueError, r"output has shape \(1, 2\) where \(3, 2\) was expected"),
        (lambda x: x[:, :1], ValueError, r"output has shape \(3, 1\)"),
        (lambda x: x[..., None], ValueError, "output has shape"),
        (lambda x: x.long(), TypeError, "dtype torch.int64 where a floating dtype was expected"),
    ],
)
def test_bad_outputs(output, error, match):
    model = ScoreModel(lambda x, c: output(x), make_sde("vp"))
    for t in (0.5, torch.full((3,), 0.5)):
        with pytest.raises(error, match=match):
            model.denoise(torch.ones(3, 2), t)


@pytest.mark.parametrize("t", [torch.full((2,), 0.5), torch.full((3, 1), 0.5)])
def test_times_of_a_wrong_shape(t):
    model = ScoreModel(lambda x, c: x, LinearPath())
    for view in (model.score, model.noise, model.denoise, model.velocity):
        with pytest.raises(ValueError, match="one number for each of the 3 samples"):
            view(torch.ones(3, 2), t)


@pytest.mark.parametrize("answer", [None, (1, 2), 3.0])
def test_a_network_that_returns_no_tensor_is_refused(answer):
    model = ScoreModel(lambda x, c: answer, make_sde("vp"))
    with pytest.raises(TypeError, match=f"the network must return a tensor, got {type(answer).__name__}"):
        model.denoise(torch.zeros(2, 3), 0.5)
