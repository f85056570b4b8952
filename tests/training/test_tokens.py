"""Training of symbols: the loss is the bound, and checkpoints, resumption and conditions hold as for scores."""

import math

import pytest
import torch

from sde_gen.exact.markov import MarkovChain
from sde_gen.tokens import ExactTokens, GuidedTokens, make_process, sample_tokens, token_bound
from sde_gen.training import CheckpointError, TrainSettings, fit, load, save
from sde_gen.training.tokens import TokenObjective, TokenValidation, build_token_model, load_tokens

CHAIN = MarkovChain(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.45, 0.5, 0.05]]), 6)


@pytest.mark.parametrize("name", ["absorbing", "uniform", "gaussian"])
def test_the_loss_of_exact_posteriors_is_the_entropy(name):
    model, x = ExactTokens(CHAIN, make_process(name, 3)), CHAIN.sample(4000, 1)
    objective = TokenObjective(TrainSettings())
    drawn = objective.draw(model, x.shape, torch.Generator().manual_seed(0))
    losses = objective(model, x, drawn) + CHAIN.log_prob(x) / 6
    assert abs(float(losses.mean())) < 4 * float(losses.std()) / math.sqrt(len(x))
    assert float(losses.std()) / math.sqrt(len(x)) < 0.02


def small(**options) -> torch.nn.Module:
    return build_token_model((1, 6), 3, network_options={"width": 16, "depth": 1, "heads": 2}, **options)


def test_a_network_learns_the_chain_and_a_checkpoint_keeps_it(tmp_path):
    x = CHAIN.sample(2000, 2)[:, None]
    settings = TrainSettings(steps=200, batch=128, lr=1e-2, warmup=10, evaluations=1)
    result = fit(small(), x, settings, objective=TokenObjective(settings), progress=False)
    held_out = CHAIN.sample(500, 3)
    bound = token_bound(result.model, held_out[:, None])
    frequencies = torch.stack([(x[:, 0] == symbol).double().mean(0) for symbol in range(3)])
    assert float(bound.nats.mean()) < float(torch.special.entr(frequencies).sum()) - 0.5  # it knows what stands beside
    assert float(bound.nats.mean()) > -float(CHAIN.log_prob(held_out).mean()) - 4 * float(bound.nats.std()) / math.sqrt(500)
    assert result.history[-1]["validation"] < result.linear["linear"][0] - 0.1
    save(result.raw, tmp_path / "kept", ema=result.model.network)
    again = load_tokens(tmp_path / "kept")
    assert torch.equal(token_bound(again, held_out[:, None]).nats, bound.nats)
    with pytest.raises(CheckpointError, match="holds a model of symbols"):
        load(tmp_path / "kept")


def test_a_training_goes_on_bit_for_bit():
    x = CHAIN.sample(300, 2)[:, None]
    settings = TrainSettings(steps=6, batch=32, evaluations=1)
    whole = fit(small(), x, settings, objective=TokenObjective(settings), progress=False)
    states = []

    def stop(step, result):
        if step == 3:
            state, values = result.state()
            networks = {f"network.{k}": v.clone() for k, v in result.raw.network.state_dict().items()}
            averages = {f"ema.{k}": v.clone() for k, v in result.model.network.state_dict().items()}
            states.append(({k: v.clone() for k, v in state.items()} | networks | averages, {**values, "history": list(values["history"])}))

    fit(small(), x, settings, objective=TokenObjective(settings), progress=False, on_checkpoint=stop, checkpoint_seconds=0.0)
    resumed = fit(small(), x, settings, objective=TokenObjective(settings), progress=False, resume=states[0])
    for one, other in zip(whole.raw.network.parameters(), resumed.raw.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_levels_and_classes_reach_the_network():
    x = torch.randint(0, 5, (40, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    label = torch.arange(40) % 3
    options = {"width": 8, "multipliers": [1], "attention": []}
    model = build_token_model((2, 4, 4), 5, conditions=3, ordered=True, network_options=options, process="gaussian")
    settings = TrainSettings(steps=3, batch=16, evaluations=1, drop=0.5)
    result = fit(model, x, settings, {"label": label}, objective=TokenObjective(settings), progress=False)
    told, other, null = (token_bound(result.raw, x, 4, cond=c).nats for c in ({"label": label}, {"label": (label + 1) % 3}, None))
    assert torch.isfinite(told).all()
    assert not torch.equal(told, other)
    assert not torch.equal(told, null)
    untrained = build_token_model((2, 4, 4), 5, network_options=options)  # no levels: every symbol is as likely
    assert float(token_bound(untrained, x, 4).nats.mean()) == pytest.approx(32 * math.log(5), rel=1e-4)


@pytest.mark.parametrize("name", ["absorbing", "gaussian"])
@pytest.mark.parametrize(
    ("change", "got"),
    [(lambda x: x / 5, r"0 .. 0.8, fractions among them"), (lambda x: x + 1, "1 .. 5"), (lambda x: x - 1, "-1 .. 3")],
)
def test_items_that_are_no_symbols_are_refused_and_not_cut_off(name, change, got):
    x = torch.arange(5).repeat(8, 1)[:, None]
    settings = TrainSettings(steps=1, batch=4, evaluations=1)
    model = build_token_model((1, 5), 5, name, network_options={"width": 16, "depth": 1, "heads": 2})
    with pytest.raises(ValueError, match=rf"symbols must be whole numbers 0 .. 4, got {got}"):
        fit(model, change(x), settings, objective=TokenObjective(settings), progress=False)
    assert fit(model, x.double(), settings, objective=TokenObjective(settings), progress=False).steps == 1  # whole numbers in any type


def test_conditions_of_another_number_or_range_get_one_line():
    x = torch.randint(0, 3, (6, 1, 6), generator=torch.Generator().manual_seed(0))
    model, label = small(conditions=3), torch.arange(6) % 3
    for ask in (lambda c: token_bound(model, x, 2, cond=c), lambda c: sample_tokens(GuidedTokens(model, 2.0), 6, steps=1, cond=c)):
        ask({"label": label})
        with pytest.raises(ValueError, match=r"condition 'label' must be in 0 .. 2 .* got 0 .. 7"):
            ask({"label": torch.tensor([0, 1, 2, 7, 0, 0])})
        for rows in (1, 5, 7):
            with pytest.raises(ValueError, match=f"condition 'label' must have first dimension 6, got shape \\({rows},\\)"):
                ask({"label": torch.zeros(rows, dtype=torch.int64)})
        with pytest.raises(ValueError, match="takes no condition 'lable'; it takes label"):
            ask({"lable": label})


def test_a_measurement_of_more_items_than_there_are_is_of_all():
    x = torch.cat((torch.zeros(10, 1, 6), torch.full((10, 1, 6), 2.0))).long()  # sorted by class
    model = small()
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.3 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1)))
    validation = TokenValidation.prepare(model, x, {}, 0)
    assert validation.measure(model, 50) == validation.measure(model)
    assert validation.measure(model, 10) != validation.measure(model)
