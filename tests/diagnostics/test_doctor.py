"""Every fault is planted in a model that is silent without it, and named alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import TINY_RUN, Command

from sde_gen import SDE, Dataset, ScoreModel, diagnose, load, load_dataset, make_sde, save
from sde_gen.conditions import Label
from sde_gen.diagnostics.level_errors import LevelErrors
from sde_gen.diagnostics.marginals import check_marginals
from sde_gen.diagnostics.sampling_checks import check_samples, permuted_distance
from sde_gen.exact.mixtures import GaussianData, MixtureData, RingData
from sde_gen.models.denoiser import Prediction, Wrapper
from sde_gen.models.moments import Moments
from sde_gen.training import TrainSettings, build_model, fit

DDIM = {"solver": "ddim", "steps": 50}
LAWS: dict[str, MixtureData] = {
    "ring": RingData(),
    "gaussian": GaussianData.correlated(),
    "white": GaussianData(torch.zeros(3), torch.eye(3)),
}


OF_NULL = {"null branch trained too little", "branches disagree"}
"""What is true of a network that was without its label for 35 steps; tests/diagnostics/test_condition_checks.py has exact ones."""


def names(findings: list[Any]) -> list[str]:
    return [finding.name for finding in findings]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("gaussians8", limit=4000)


def train(data: Dataset, sde: str, prediction: str, labels: bool = False) -> tuple[ScoreModel, ScoreModel]:
    classes = data.classes if labels else None
    model = build_model(data.train, sde, "mlp", prediction, network_options={"width": 48, "depth": 2}, conditions=classes)
    settings = TrainSettings(steps=700 if labels else 350, batch=256, lr=3e-3, evaluations=1)
    result = fit(model, data.train, settings, {"label": data.train_labels} if labels else None, held_out=data.test, progress=False)
    return result.model, result.raw


@pytest.fixture(scope="module")
def conditional(data: Dataset) -> tuple[ScoreModel, ScoreModel]:
    return train(data, "vp", "edm", labels=True)


@pytest.fixture(scope="module")
def plain(data: Dataset) -> tuple[ScoreModel, ScoreModel]:
    return train(data, "ve", "v")


def wrapped(model: ScoreModel, network: Callable[..., Tensor]) -> ScoreModel:
    """The model around another callable, which is as conditional as the one that it had."""

    class Shell(nn.Module):
        encoders = model.encoders

        def forward(self, x: Tensor, c: Tensor, **cond: Any) -> Tensor:
            return network(x, c, **cond)

    return model.with_network(Shell())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_silent_on_exact_models(sde: str, law: str) -> None:
    exact = LAWS[law]
    assert diagnose(exact.model(make_sde(sde)), exact.sample(1000, 1).float(), sampling=DDIM, samples=100) == []


def test_silent_on_trained_models(data: Dataset, conditional: tuple[ScoreModel, ScoreModel], plain: tuple[ScoreModel, ScoreModel]) -> None:
    assert diagnose(plain[0], data, plain[1], sampling=DDIM) == []
    assert set(names(diagnose(conditional[0], data, conditional[1], sampling=DDIM))) <= OF_NULL


def test_average_too_young(data: Dataset, plain: tuple[ScoreModel, ScoreModel]) -> None:
    model, raw = plain
    young = copy.deepcopy(raw.network)
    fresh = build_model(data.train, "ve", "mlp", "v", network_options={"width": 48, "depth": 2}).network
    with torch.no_grad():  # an average with nine tenths of its weight on the first step
        for mine, first in zip(young.parameters(), fresh.parameters(), strict=True):
            mine.lerp_(first, 0.9)
    found = diagnose(model.with_network(young), data, raw)
    assert names(found) == ["EMA too young"] and found[0].numbers["averaged"] < 0.5 < found[0].numbers["raw"]
    assert names(diagnose(model.with_network(young), data)) == ["not learned"]


def test_nan_weights(data: Dataset, conditional: tuple[ScoreModel, ScoreModel]) -> None:
    model, raw = conditional
    broken = copy.deepcopy(raw.network)
    with torch.no_grad():
        next(broken.parameters()).flatten()[3] = float("nan")
    found = diagnose(model.with_network(broken), data, raw)
    assert names(found) == ["NaN weights"] and found[0].numbers["values"] == 1 and "averaged" in found[0].evidence
    found = diagnose(model, data, raw.with_network(broken))
    assert names(found)[0] == "NaN weights" and set(names(found)[1:]) <= OF_NULL and found[0].severity == "warning"
    assert names(diagnose(wrapped(model, lambda x, c, **cond: x * float("inf")), data)) == ["NaN answers"]


@pytest.mark.parametrize("law", ["ring", "gaussian"])  # on VE minus the score of white data is its denoiser: nobody could tell
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_flipped_sign_of_the_score(sde: str, law: str) -> None:
    exact = LAWS[law]
    model = exact.model(make_sde(sde))
    score = model.network
    found = diagnose(model.with_network(lambda x, c: -score(x, c)), exact.sample(1000, 1).float(), sampling=DDIM)
    assert names(found) == ["flipped sign"] and found[0].numbers["correlation"] < -0.3


def test_flipped_sign_of_a_trained_network(data: Dataset, plain: tuple[ScoreModel, ScoreModel]) -> None:
    network = plain[0].network
    assert names(diagnose(wrapped(plain[0], lambda x, c: -network(x, c)), data)) == ["flipped sign"]


@pytest.mark.parametrize(
    ("said", "clock"),
    [
        ("1000 times", lambda c: c / 1000),
        ("0.001 times", lambda c: c * 1000),
        ("'half_log_snr' +", lambda c: c - 3),
        ("'half_log_snr' -", lambda c: c + 3),
        ("-1 times", lambda c: -c),
    ],
)
def test_wrong_time_scale(data: Dataset, conditional: tuple[ScoreModel, ScoreModel], said: str, clock: Callable[[Tensor], Tensor]) -> None:
    network = conditional[0].network
    found = diagnose(wrapped(conditional[0], lambda x, c, **cond: network(x, clock(c), **cond)), data)
    assert names(found) == ["wrong time scale"] and said in found[0].evidence


def test_a_network_given_time_in_the_place_of_the_log_snr(data: Dataset, conditional: tuple[ScoreModel, ScoreModel]) -> None:
    model = conditional[0]
    settings = model.settings() | {"clock": "time"}
    wrong = ScoreModel(model.network, model.sde, **settings, normalizer=model.normalizer, moments=model.moments)
    found = diagnose(wrong, data)
    assert names(found) == ["wrong time scale"] and "'half_log_snr'" in found[0].advice


def test_wrong_data_range(data: Dataset, plain: tuple[ScoreModel, ScoreModel]) -> None:
    def shown(change: Callable[[Tensor], Tensor]) -> list[Any]:
        assert data.test is not None
        return diagnose(plain[0], replace(data, train=change(data.train), test=change(data.test)), sampling=DDIM)

    low, high = float(data.train.min()), float(data.train.max())
    assert names(shown(lambda x: (x - low) / (high - low) * 255)) == ["wrong data range"]
    assert names(shown(lambda x: x / high)) == ["wrong data range"]
    clipped = shown(lambda x: x.clamp(-1, 1))
    assert names(clipped) == ["wrong data range"] and "clipped" in clipped[0].evidence
    assert names(shown(lambda x: x + 3 * high)) == ["wrong data range"]


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_wrong_data_range_is_seen_by_the_network_alone(sde: str) -> None:
    exact = GaussianData.correlated()
    model = ScoreModel(exact.score(make_sde(sde)), make_sde(sde), prediction="score")
    x = exact.sample(1000, 1).float()
    assert diagnose(model, x) == []
    found = diagnose(model, 127.5 + 127.5 * x)
    assert names(found) == ["wrong data range"] and found[0].numbers["std_ratio"] == pytest.approx(127.5, rel=0.2)


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_too_few_solver_steps(sde: str) -> None:
    ring = RingData()
    model, x = ring.model(make_sde(sde)), ring.sample(1000, 1).float()
    found = diagnose(model, x, sampling={"solver": "ddim", "steps": 2}, samples=800)
    assert names(found) == ["too few solver steps"] and found[0].numbers["to_data"] > 1.5 * found[0].numbers["fine_to_data"]
    assert diagnose(model, x, sampling={"solver": "ode"}, samples=64) == []
    assert names(diagnose(model, x, sampling={"solver": "ode", "steps": 3}, samples=64)) == ["too few solver steps"]  # the cap
    assert diagnose(model, x, sampling={"solver": "ddim", "steps": 3}, samples=0) == []


@pytest.mark.parametrize("prior", ["sde", "matched"])
def test_sigma_max_too_small(prior: str) -> None:
    ring = RingData()
    x = ring.sample(1000, 1).float()
    found = diagnose(ring.model(make_sde("ve", sigma_max=1.0), prior), x)
    assert names(found) == ["sigma_max too small"] and found[0].numbers["largest_distance"] == pytest.approx(3.2, rel=0.1)
    assert found[0].severity == ("fault" if prior == "sde" else "warning")
    assert diagnose(ring.model(make_sde("ve", sigma_max=8.0), prior), x) == []
    assert names(diagnose(ring.model(make_sde("vp", beta_max=2.0), "sde"), x)) == ["sigma_max too small"]


def test_conditioning_ignored(data: Dataset, conditional: tuple[ScoreModel, ScoreModel], plain: tuple[ScoreModel, ScoreModel]) -> None:
    network = conditional[0].network
    found = diagnose(wrapped(conditional[0], lambda x, c, label=None: network(x, c)), data)
    assert names(found) == ["conditioning ignored"] and found[0].numbers["gain"] == 0
    # labels that say nothing cannot be used: no alarm
    assert data.train_labels is not None and data.test_labels is not None
    shuffled = replace(data, train_labels=data.train_labels[torch.randperm(len(data.train))], test_labels=data.test_labels.roll(1))
    assert "conditioning ignored" not in names(diagnose(wrapped(conditional[0], lambda x, c, label=None: network(x, c)), shuffled))


def meant(exact: MixtureData, sde: SDE, prediction: str, declared: str) -> ScoreModel:
    """A network that gives `prediction` exactly, declared as something else."""
    truth = exact.model(sde)
    views = {"noise": truth.noise, "data": truth.denoise, "flow": truth.velocity, "score": truth.score}

    def v(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value[:, None].to(x) for value in sde.marginal(t))
        return alpha * truth.noise(x, t) - sigma * truth.denoise(x, t)

    return ScoreModel(views.get(prediction, v), sde, prediction=declared, prior="matched", moments=truth.moments)


@pytest.mark.parametrize("sde", ["vp", "ve"])
@pytest.mark.parametrize("prediction", ["noise", "data", "v", "flow", "score"])
def test_wrong_prediction_type(sde: str, prediction: str) -> None:
    ring, process = RingData(), make_sde(sde)
    x = ring.sample(1000, 1).float()
    kinds = ["noise", "data", "v", "flow", "score"]
    for step in (1, 3) if sde == "vp" else (2,):
        declared = kinds[(kinds.index(prediction) + step) % 5]
        found = diagnose(meant(ring, process, prediction, declared), x)
        assert names(found) == ["wrong prediction type"] and f"as {prediction!r}" in found[0].evidence, (declared, found)


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_a_small_noise_loss_that_is_a_large_error_of_the_data(sde: str) -> None:
    ring, process = RingData(), make_sde(sde)
    exact = meant(ring, process, "noise", "noise")
    network, x = exact.network, ring.sample(1000, 1).float()
    assert diagnose(exact, x) == []
    found = diagnose(exact.with_network(lambda x, c: network(x, c) + 0.1), x)  # a loss of 0.01 over a perfect network's
    assert names(found) == ["bad noise levels"] and found[0].numbers["highest"] < 0 and found[0].numbers["worst"] > 5


def test_a_part_of_sorted_items_is_of_all_of_them() -> None:
    labels = torch.arange(2).repeat_interleave(50)
    x = 4.0 * labels[:, None] + torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    measured = LevelErrors(RingData().model(make_sde("vp")), x, x.flip(0), ({"label": labels}, {"label": labels.flip(0)}))
    part = measured.thinned(10, 4)
    assert part.labels is not None and part.labels[0].bincount().tolist() == [5, 5]
    assert torch.equal(part.items, x[::10]) and torch.equal(part.best, measured.best[::4, ::10])
    assert len(measured.thinned(1000, 1).items) == 100


def test_permutations_hold_their_level() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=generator, dtype=torch.float64)
    distance, chance = permuted_distance(x[:300], x[300:])
    assert abs(distance - chance.value) < 4 * chance.std_error
    distance, chance = permuted_distance(x[:300], 1.4 * x[300:])
    assert distance - chance.value > 4 * chance.std_error


class Wrapped(Wrapper):
    """The model as it is, or with another prediction."""

    same_law = True

    def __init__(self, model: ScoreModel, change: Callable[[Tensor], Tensor] = lambda denoised: denoised) -> None:
        super().__init__(model)
        self.change = change

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        return Prediction(self.change(self.model.denoise(x, t, **cond)))


def test_any_denoiser_is_diagnosed_but_for_the_meaning_of_its_output(
    data: Dataset, conditional: tuple[ScoreModel, ScoreModel], plain: tuple[ScoreModel, ScoreModel]
) -> None:
    for model, raw in (conditional, plain):
        assert set(names(diagnose(Wrapped(model), data, Wrapped(raw), sampling=DDIM, samples=200))) <= (
            OF_NULL if model.encoders else set()
        )
    model = plain[0]
    assert names(diagnose(Wrapped(model, lambda denoised: -denoised), data)) == ["not learned"]
    assert names(diagnose(Wrapped(model, lambda denoised: -denoised), data, Wrapped(plain[1]))) == ["EMA too young"]
    assert names(diagnose(Wrapped(model, lambda denoised: denoised * float("nan")), data)) == ["NaN answers"]
    assert data.test is not None
    far = replace(data, train=100 * data.train, test=100 * data.test)
    assert names(diagnose(Wrapped(model), far)) == ["wrong data range"]
    broken = copy.deepcopy(model.network)
    with torch.no_grad():
        next(broken.parameters()).flatten()[3] = float("nan")
    assert names(diagnose(Wrapped(model.with_network(broken)), data)) == ["NaN weights"]
    network = conditional[0].network
    deaf = wrapped(conditional[0], lambda x, c, label=None: network(x, c))
    assert names(diagnose(Wrapped(deaf), data)) == ["conditioning ignored"]
    ring = RingData()
    x = ring.sample(1000, 1).float()
    assert names(diagnose(Wrapped(ring.model(make_sde("vp"))), x, sampling=DDIM | {"steps": 2}, samples=800)) == ["too few solver steps"]
    assert names(diagnose(Wrapped(ring.model(make_sde("ve", sigma_max=1.0), "sde")), x)) == ["sigma_max too small"]


def columns(count: int, seed: int) -> Tensor:
    """Seven independent columns of unlike units: two normal, one positive, one with zeros, one even, one of two values, one negative."""
    z = torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))
    of = [z[:, 0], z[:, 1] + 100, 1e3 * torch.exp(z[:, 2] / 2), z[:, 3].clamp_min(0), 0.01 * torch.erf(z[:, 4]), (z[:, 5] > 0).float()]
    return torch.stack([*of, -z[:, 6].abs()], 1)


@pytest.mark.parametrize("few", [False, True])
def test_a_network_of_a_table_that_learned_nothing_is_named(few: bool) -> None:
    """What can be learned lies in each column alone: neither a linear denoiser nor neighbours know of it."""
    train, held = columns(160 if few else 1500, 0), columns(300, 1)
    model = build_model(train, "vp", "mlp", network_options={"width": 16, "depth": 1})
    lost = fit(model, train, TrainSettings(steps=20, batch=64, lr=3.0, evaluations=1), held_out=held, progress=False).model
    assert names(diagnose(lost, Dataset("columns", train, held))) == ["not learned"]


def fields(count: int, size: int, seed: int) -> Tensor:
    """Smooth random fields, whose largest axes hold nearly all of their variance."""
    place = torch.arange(size) / size
    root = torch.exp(-18 * (place[:, None] - place) ** 2)
    x = root @ torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed)) @ root
    return 5 + 3 * x / x.std()


@pytest.mark.parametrize(("size", "count"), [(33, 300), (32, 120)])
def test_an_untrained_network_is_named_beyond_the_whole_covariance_and_for_few_items(size: int, count: int) -> None:
    x = fields(count, size, 0)
    model = build_model(x, "vp", "mlp", network_options={"width": 8, "depth": 1})
    assert names(diagnose(model, x)) == ["not learned"]
    few = [Moments.fit(x[torch.randperm(120, generator=torch.Generator().manual_seed(k))[:40]]).axis_values for k in range(10)]
    assert all(values is not None and values[-1] > 0 for values in few)  # what lies beside the axes is little, and not nothing
    white = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    assert names(diagnose(build_model(white, "vp", "mlp", network_options={"width": 8, "depth": 1}), white)) == []  # nothing to learn


def test_values_unlike_the_datas_are_named_with_their_columns() -> None:
    data, fresh = columns(2000, 0), columns(500, 2)
    generator = torch.Generator().manual_seed(3)
    assert check_marginals(fresh, data) == []
    blurred = fresh + 0.03 * data.std(0) * torch.randn(500, 7, generator=generator)
    assert check_marginals(blurred, data) == []  # samples are never exact
    gaussian = data.mean(0) + data.std(0) * torch.randn(500, 7, generator=generator)
    (found,) = check_marginals(gaussian, data)
    assert found.numbers["columns"] == 4 and "column 6: " in found.evidence
    for column, change, said in (
        (2, lambda x: x - 1200, "are below 0, 0.0% of the data"),
        (6, lambda x: -x, "are above 0, 0.0% of the data"),
        (3, lambda x: torch.where(x == 0, 0.15, x), "are not 0, "),
        (0, lambda x: x + 0.5, "quantile"),
        (1, lambda x: 100 + 5 * (x - 100), "are outside the data's range"),
    ):
        wrong = fresh.clone()
        wrong[:, column] = change(wrong[:, column])
        (found,) = check_marginals(wrong, data)
        assert f"in 1 of 7 columns; column {column + 1}: " in found.evidence and said in found.evidence, found.evidence
    crowded, cut = fresh.clone(), torch.quantile(data[:, 0].double(), torch.tensor([0.5, 0.8, 0.9], dtype=torch.float64))
    crowded[:, 0] = torch.where(crowded[:, 0] > cut[0], cut[1:].mean(), crowded[:, 0].double()).to(data)  # a half where a fifth should be
    (found,) = check_marginals(crowded, data)
    assert "above the data's 80% quantile, 20.0% of the data's" in found.evidence, found.evidence
    for offset in (0.0, 1e8):  # float32 would know this to 8 standard deviations
        pictures = offset + torch.randn(600, 1, 4, 4, dtype=torch.float64, generator=generator)
        assert check_marginals(pictures[:200], pictures[200:]) == []
        assert names(check_marginals(pictures[:200] + 2, pictures[200:])) == ["values unlike the data's"]
    few = check_marginals(fresh[:40] * torch.tensor([1.15, 1, 1, 1, 1, 1, 1]), data)
    assert few == []  # not sure


def test_the_samples_of_a_conditional_model_have_the_classes_of_its_data_and_are_of_their_values() -> None:
    """Sorted items, 95 % of them of one class: by classes in turn a perfect network's values would be unlike the data's."""
    labels = (torch.arange(1000) >= 950).long()
    x = 1000 * (6.0 * labels[:, None] + torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)))
    model = build_model(x, "vp", "mlp", conditions=2, prediction="data")
    assert model.normalizer is not None
    z, sde = model.normalizer.encode(x).double(), model.sde
    laws = [(z[labels == k].mean(0), z[labels == k].var(0)) for k in (0, 1)]
    means, variances = (torch.stack(part) for part in zip(*laws, strict=True))
    scale = model.data_std

    class Known(nn.Module):
        encoders = {"label": Label("label", 1, (), 2)}  # noqa: RUF012

        def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
            alpha, sigma = (value.reshape(-1, 1) for value in sde.marginal(sde.time_of(c.double())))
            assert label is not None and scale is not None
            state = x.double() * torch.sqrt(alpha**2 * scale**2 + sigma**2)  # its input comes at unit variance
            gain = alpha * variances[label] / (alpha**2 * variances[label] + sigma**2)
            return (means[label] + gain * (state - alpha * means[label])).to(x)

    data = Dataset("classes", x, x[::3], labels, labels[::3], classes=2)
    exact = model.with_network(Known())
    assert names(diagnose(exact, data, sampling={"solver": "dpm", "steps": 15}, samples=400)) == []
    unlabelled = replace(data, test=100 * x[::3], test_labels=None)  # is not asked for an answer without a label, which `Known` refuses
    assert names(diagnose(exact, unlabelled)) == []
    wrong = replace(data, train=x.abs(), test=x[::3].abs())  # values that the model does not have
    assert "values unlike the data's" in names(check_samples(exact, wrong.train, {"label": labels}, {"solver": "dpm", "steps": 15}, 0, 400))


def test_refuses_what_it_cannot_measure(plain: tuple[ScoreModel, ScoreModel]) -> None:
    model, x = plain[0], torch.randn(50, 2)
    with pytest.raises(ValueError, match="data has 5 items; at least 32"):
        diagnose(model, torch.randn(5, 2))
    with pytest.raises(ValueError, match="data holds 100 NaN or infinite value") as caught:
        diagnose(model, torch.full((50, 2), torch.nan))
    needy = model.with_network(lambda x, c, *, age: x)
    for arguments, message in (
        ((model.network, x), "model must be a Denoiser such as ScoreModel, got MLP"),
        ((model, x, model.network), "raw must be a Denoiser such as ScoreModel, got MLP"),
        ((model, x.numpy()), r"data must be a Dataset or a tensor \(N, \*\), got ndarray"),
        ((needy, x), r"cannot call this ScoreModel with items of shape \(2,\) and no condition: .*age"),
        (
            (RingData().model(make_sde("vp")), torch.randn(50, 3)),
            r"cannot call this ScoreModel with items of shape \(3,\) and no condition",
        ),
    ):
        with pytest.raises(TypeError, match=message) as caught:
            diagnose(*arguments)
        assert "\n" not in str(caught.value)


def test_the_command(sde_gen_command: Command, tmp_path: Path, data: Dataset, plain: tuple[ScoreModel, ScoreModel]) -> None:
    run = tmp_path / "mine"
    chosen = ["--data", "gaussians8", "--set", "data.limit=1000", "--sde", "ve", "--solver", "ddim", "--steps", "2"]
    assert sde_gen_command("run", *TINY_RUN, *chosen, "--out", str(run))[0] == 0
    code, out, err = sde_gen_command("doctor", "--run", str(run), "--samples", "0")
    assert code == 1 and err == [] and any(line.startswith("fault     not learned") for line in out)  # 12 steps of training
    model, raw = plain
    save(raw, run / "checkpoint", ema=model.network, extra={"complete": True})  # type: ignore[arg-type]
    assert load(run / "checkpoint").prediction == "v"
    code, out, err = sde_gen_command("doctor", "--run", str(run), "--samples", "0")
    assert (code, err) == (0, []) and out[-2].startswith("nothing wrong found")
    code, out, err = sde_gen_command("doctor", "--run", str(run), "--samples", "500")
    assert code == 1 and any(line.startswith("fault     too few solver steps") for line in out)  # the run says 2
    saved = json.loads((run / "doctor.json").read_text())
    assert saved[0]["name"] == "too few solver steps" and saved[0]["numbers"]["distance"] > 0
    code, out, err = sde_gen_command("doctor", "--run", "nowhere")
    assert code == 2 and len(err) == 1 and "nowhere is not a run directory" in err[0]
