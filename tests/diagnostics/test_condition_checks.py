"""The doctor on conditions: exact laws are silent; what is ignored, used in part, or has a poor null branch is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conditional_laws import BLUR, FIELD, NUMBERS, TABLE, UNITS, Labelled, Linear, labelled, model
from torch import Tensor

from sde_gen import Dataset, diagnose, information
from sde_gen.diagnostics.condition_checks import entropy
from sde_gen.diagnostics.information import Information, findings

DDIM = {"solver": "ddim", "steps": 20}


def names(found: list[Any]) -> list[str]:
    return [one.name for one in found]


def classes(**options: Any) -> tuple[Any, Dataset]:
    (x, label), (held, of_held) = labelled(400), labelled(120, 7)
    data = Dataset("classes", UNITS.decode(x), UNITS.decode(held), label, of_held, classes=2)
    return model(Labelled(**options), normalizer=UNITS), data


def linear(encoder: Any = NUMBERS, matrix: Tensor = TABLE, **options: Any) -> tuple[Any, Dataset]:
    network = Linear(matrix, encoder, **options)
    (x, y), (held, of_held) = network.draw(400), network.draw(120, 5)
    shape = (1, 4, 4) if encoder is FIELD else x.shape[1:]
    parts = [(part.reshape(-1, *shape), z.reshape(-1, *shape) if encoder is FIELD else z) for part, z in ((x, y), (held, of_held))]
    (x, y), (held, of_held) = parts
    return model(network), Dataset("linear", x, held, cond={encoder.name: y}, test_cond={encoder.name: of_held})


KINDS = {"label": classes, "numbers": linear, "map": lambda **options: linear(FIELD, BLUR, **options)}


@pytest.mark.parametrize("kind", KINDS)
def test_exact_branches_are_silent_and_every_spoilt_one_is_named(kind: str) -> None:
    exact, data = KINDS[kind]()
    assert diagnose(exact, data, sampling=DDIM, samples=40) == []
    deaf, _ = KINDS[kind](used=0.0)
    (found,) = diagnose(deaf, data)
    assert (found.name, found.severity) == ("conditioning ignored", "fault") and "label_dropout" not in found.advice
    poor = names(diagnose(KINDS[kind](null_scale=0.5)[0], data))
    assert "null branch trained too little" in poor and "conditioning ignored" not in poor
    in_part, _ = KINDS[kind](used=0.6)
    found = next(one for one in diagnose(in_part, data) if one.name == "branches disagree")
    assert "it is used in part" in found.evidence and "training.drop" in found.advice and found.severity == "warning"


def test_the_information_of_a_linear_law_is_its_own() -> None:
    for encoder, matrix in ((NUMBERS, TABLE), (FIELD, BLUR)):
        network = Linear(matrix, encoder)
        x, y = network.draw(400)
        shape = (-1, 1, 4, 4) if encoder is FIELD else (len(x), -1)
        found = information(model(network), x.reshape(shape), encoder.name, {encoder.name: y.reshape(shape)}, draws=4)
        assert network.nats > 1
        assert found.value == pytest.approx(network.nats, abs=4 * found.std_error + 0.02 * network.nats)
        assert found.orthogonal == pytest.approx(network.nats, abs=4 * found.orthogonal_error + 0.02 * network.nats)
        assert findings(encoder.name, found) == []


def test_a_condition_that_says_nothing_of_the_data_is_no_fault_of_the_network() -> None:
    silent, _ = linear(used=0.0)
    data = linear()[1]
    shuffled = Dataset("shuffled", data.train, data.test, cond={"y": data.cond["y"].flip(0)}, test_cond={"y": data.test_cond["y"].flip(0)})
    (found,) = diagnose(silent, shuffled)
    assert (found.name, found.severity) == ("condition tells nothing", "warning") and "'y'" in found.evidence


def test_more_than_a_label_can_tell_names_the_null_branch_though_the_two_forms_agree() -> None:
    x, label = labelled(300)
    most = entropy(label, 2)
    assert most == pytest.approx(0.673, abs=1e-3) and entropy(torch.tensor([0, 1, 2, 2]), 2) == pytest.approx(0.693, abs=1e-3)
    found = information(model(Labelled(null_scale=0.7)), x, "label", {"label": label})
    assert abs(found.orthogonal - found.value) < 4 * found.disagreement_error
    assert names(findings("label", found, most)) == ["null branch trained too little"] and findings("label", found) == []


def test_what_counts_is_beyond_the_errors() -> None:
    def found(value: float, orthogonal: float, error: float) -> list[str]:
        return names(findings("a", Information(value, error, orthogonal, error, error, [], [], []), 2.0))

    assert found(1.9, 1.8, 0.01) == [] and found(2.3, 2.3, 0.2) == [] and found(1.0, 1.6, 0.2) == []
    assert found(0.005, 0.002, 0.01) == ["condition tells nothing"]
    assert found(1.0, 1.6, 0.05) == found(1.6, 1.0, 0.05) == ["branches disagree"]
    assert found(3.0, 3.0, 0.05) == ["null branch trained too little"]


def test_conditions_that_the_data_lack_are_not_given() -> None:
    exact, data = linear()
    assert diagnose(exact, Dataset("alone", data.train, data.test)) == []
    assert diagnose(exact, data.train) == []
