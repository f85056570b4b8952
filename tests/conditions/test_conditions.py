"""Every encoder of the registry: what it takes, what stands for "not given", and that values keep their digits."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_gen.conditions import CONDITIONS, FADE, RESERVED, Condition, Label, Map, Mask, Numbers, fit_condition, make_condition
from sde_gen.data.captions import text_tensor, texts_of

WIDTH, COUNT, GRID = 16, 6, (8, 12)
COARSE = (4, 6)
VALID = {"valid", "valid_features"}


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


VALUES: dict[str, Tensor] = {
    "label": torch.arange(COUNT) % 3,
    "numbers": 2026 + 0.01 * draws(COUNT, 3),
    "sequence": 1e5 + 30 * draws(COUNT, 5, 2),
    "map": 1e5 + 30 * draws(COUNT, 2, *COARSE),
    "mask": draws(COUNT, 1, *GRID) > 0,
    "valid": draws(COUNT, 2, *GRID, seed=1) > -0.5,
    "text": text_tensor(["a red heart, very small", "the owl of the north", "Grüße, äußerst ❤ 12 ok", *["one two three four five"] * 3]),
    "valid_features": draws(COUNT, 7, seed=2) > -0.5,
}
"""Of every kind, in units of their own: their means are far larger than their spread."""


def space(kind: str) -> tuple[int, ...]:
    """The grid of data that such a condition goes with."""
    return () if kind == "valid_features" else GRID


def made(kind: str, name: str = "told", **changes: Any) -> Condition:
    torch.manual_seed(0)
    spec = fit_condition(name, VALUES[kind], space(kind), kind) | changes
    encoder = make_condition(name, spec, WIDTH, space(kind))
    with torch.no_grad():
        for parameter in encoder.parameters():  # as after some training: nothing is zero any more
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return encoder.eval()


def loss(found: Any) -> Tensor:
    """A number that depends on all that an encoder gives."""
    parts = [found] if isinstance(found, Tensor) else [part for part in found if part.is_floating_point()]
    return torch.stack([part.square().sum() for part in parts]).sum()


def outputs(found: Any) -> Tensor:
    """What an encoder gives, one row for each sample; of tokens only those that are there."""
    if isinstance(found, Tensor):
        return found.flatten(1).detach()
    return torch.where(found[1][:, :, None], found[0], 0.0).flatten(1).detach()


def partly(kind: str) -> Tensor:
    """The values with entries that are not known, and the last row not given at all."""
    values = VALUES[kind]
    if kind == "label":
        return torch.cat([values[:-1], torch.tensor([3])])
    if kind in VALID:  # which is known of every entry
        return values
    if kind == "text":
        return text_tensor([*texts_of(values)[:2], "one word is missing", *texts_of(values)[3:-1], ""])
    values = values.double().clone()
    values[2, 0] = torch.nan
    values[-1] = torch.nan
    return values


kinds = pytest.mark.parametrize("kind", sorted(CONDITIONS))
kinds_with_null = pytest.mark.parametrize("kind", sorted(set(CONDITIONS) - VALID))
"""What is data is never left out (models/test_masks.py)."""


def test_every_kind_has_values_here() -> None:
    assert set(VALUES) == set(CONDITIONS)


@kinds
def test_a_spec_is_json_and_rebuilds_the_encoder(kind: str) -> None:
    encoder = made(kind)
    spec = json.loads(json.dumps(encoder.spec))
    again = make_condition("told", spec, WIDTH, space(kind)).eval()
    again.load_state_dict(encoder.state_dict())
    assert again.spec == encoder.spec and encoder.spec["kind"] == kind and type(again) is CONDITIONS[kind]
    assert torch.equal(outputs(again(partly(kind))), outputs(encoder(partly(kind))))


@kinds
def test_its_output_is_what_its_port_takes(kind: str) -> None:
    encoder = made(kind)
    found = encoder(encoder.check(partly(kind)))
    if encoder.port == "vector":
        assert isinstance(found, Tensor) and found.shape == (COUNT, WIDTH)
    elif encoder.port == "tokens":
        tokens, there, *whole = found
        assert [vector.shape for vector in whole] == ([(COUNT, WIDTH)] if kind == "text" else [])
        assert tokens.shape == (COUNT, 6, WIDTH) and there.shape == (COUNT, 6) and there.dtype == torch.bool
        assert there.sum(1).tolist() == [6, 6, 5, 6, 6, 1]  # one is always there
    else:
        assert isinstance(encoder, Map) and found.shape == (COUNT, encoder.out_channels, *GRID)


@kinds_with_null
def test_the_null_is_what_is_missing_and_no_value_of_data(kind: str) -> None:
    encoder, values = made(kind), VALUES[kind]
    of_values, null = outputs(encoder(values)), encoder.null(encoder.check(values))
    none, missing = outputs(encoder(null)), outputs(encoder(encoder.missing(COUNT, torch.device("cpu"))))
    torch.testing.assert_close(none[:, : missing.shape[1]], missing)
    assert float(none[:, missing.shape[1] :].abs().sum()) == 0  # of a sequence: places that are not there
    torch.testing.assert_close(none, none[:1].expand_as(none))
    assert bool(((of_values - none).abs().amax(1) > 1e-3).all())
    # a batch mixes rows with and without, and each row is what it is alone
    torch.testing.assert_close(outputs(encoder(partly(kind)))[-1], none[-1])
    torch.testing.assert_close(outputs(encoder(partly(kind)))[0], of_values[0])


@kinds_with_null
def test_the_null_is_learned(kind: str) -> None:
    encoder = made(kind)
    found = encoder(encoder.missing(COUNT, torch.device("cpu")))
    loss(found).backward()
    learned = {"label": "table.weight", "sequence": "always", "text": "always"}.get(kind, "unknown")
    gradient = dict(encoder.named_parameters())[learned].grad
    assert gradient is not None and float(gradient.abs().sum()) > 0


@kinds
def test_what_is_not_known_leaks_into_no_gradient(kind: str) -> None:
    encoder = made(kind)
    values = partly(kind)
    if values.is_floating_point():
        values.requires_grad_()
    found = encoder(values)
    loss(found).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
    if values.grad is not None:
        known = ~torch.isnan(values.detach())
        assert bool(torch.isfinite(values.grad).all()) and float(values.grad[~known].abs().sum()) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@kinds
def test_values_keep_their_digits_whatever_the_weights_become(kind: str, dtype: torch.dtype) -> None:
    """Two encoders of one spec, one of which was cast: mean and std stay float64, and so differences of 1e-5 of a value survive."""
    plain = made(kind)
    cast = made(kind).to(dtype)
    assert {buffer.dtype for buffer in cast.buffers()} <= {torch.float64}
    assert {parameter.dtype for parameter in cast.parameters()} == {dtype}
    expected, found = outputs(plain(partly(kind))), outputs(cast(partly(kind)))
    assert found.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)
    for part in ("mean", "std"):
        assert kind in ("label", "mask", "text", "valid_features") or torch.equal(getattr(cast, part), getattr(plain, part))


def test_a_year_keeps_its_digits() -> None:
    year = torch.tensor([2026.0, 2026.001, 2026.002], dtype=torch.float64)
    encoder = make_condition("year", {"kind": "numbers", "size": 1, "mean": [2026.001], "std": [0.001]}, WIDTH, ())
    assert isinstance(encoder, Numbers)
    for one in (encoder, encoder.to(torch.bfloat16), encoder.half()):
        torch.testing.assert_close(one.standard(year), torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-6)
    assert not torch.equal(encoder.standard(year.float()), encoder.standard(year))  # float32 has 1.2e-4 between years


def test_the_scale_is_that_of_what_is_known() -> None:
    values = VALUES["numbers"].clone()
    values[:, 2] = 7.0  # does not vary
    values[0, 0] = values[3, 1] = torch.nan
    spec = fit_condition("told", values, ())
    known = values[1:, 0]
    assert spec["mean"][0] == pytest.approx(float(known.mean()), rel=1e-12)
    assert spec["std"][0] == pytest.approx(float(known.std(unbiased=False)), rel=1e-6)
    assert spec["mean"][2] == 7.0 and spec["std"][2] == 1.0
    assert fit_condition("told", torch.full((4, 1), torch.nan), ())["std"] == [1.0]  # nothing is known of it
    field = VALUES["map"]
    assert fit_condition("told", field, GRID)["mean"] == pytest.approx(field.mean((0, 2, 3)).tolist())
    places = VALUES["sequence"]
    assert fit_condition("told", places, GRID)["std"] == pytest.approx(places.flatten(0, 1).std(0, unbiased=False).tolist())


def test_a_coarse_map_is_resampled_between_the_centres_of_its_cells() -> None:
    """A plane a + b i + c j over the data's grid, of which a coarse map has the values at the centres of its cells, comes back exactly,
    but for the rim beyond the outermost centres, where the nearest value stands."""

    def plane(rows: Tensor, columns: Tensor) -> Tensor:
        return (3 + 0.5 * rows[:, None] - 0.25 * columns[None, :])[None, None]

    centres = [torch.arange(n, dtype=torch.float64) * 2 + 0.5 for n in COARSE]
    encoder = make_condition("told", {"kind": "map", "grid": list(COARSE)}, WIDTH, GRID)
    found = encoder(plane(*centres)).detach().double()
    rows, columns = (torch.arange(n, dtype=torch.float64).clamp(0.5, n - 1.5) for n in GRID)
    torch.testing.assert_close(found[:, :1], plane(rows, columns), rtol=0, atol=1e-5)
    assert torch.equal(found[:, 1:], torch.ones_like(found[:, 1:]))


@pytest.mark.parametrize(("spatial", "grid"), [((9,), (3,)), ((8, 12), (8, 12)), ((4, 6, 8), (2, 3, 4)), ((8, 8), (16, 16))])
def test_maps_of_one_to_three_axes_keep_constants_and_say_where_they_are_known(spatial: tuple[int, ...], grid: tuple[int, ...]) -> None:
    encoder = make_condition("told", {"kind": "map", "channels": 2, "grid": list(grid)}, WIDTH, spatial)
    values = torch.tensor([2.0, -1.0]).reshape(1, 2, *[1] * len(grid)).expand(3, 2, *grid).clone()
    values[1, 0] = torch.nan
    found = encoder(values).detach()
    assert found.shape == (3, 4, *spatial)
    for row, channel, number in ((0, 0, 2.0), (0, 1, -1.0), (1, 0, 0.0), (1, 1, -1.0), (0, 2, 1.0), (1, 2, 0.0), (1, 3, 1.0)):
        torch.testing.assert_close(found[row, channel], torch.full(spatial, number))


def test_a_set_does_not_know_its_order_and_a_sequence_does() -> None:
    values = VALUES["sequence"]
    for ordered in (True, False):
        encoder = made("sequence", ordered=ordered)
        tokens, turned = (encoder(one)[0][:, 1:].detach() for one in (values, values.flip(1)))
        assert torch.allclose(tokens.flip(1), turned, atol=1e-6) != ordered
    short, _ = encoder(values[:, :2])
    torch.testing.assert_close(short, encoder(values)[0][:, :3])


def test_labels_keep_the_datas_own_words() -> None:
    spec = fit_condition("told", VALUES["label"], (), names=["cat", "dog", "owl"])
    assert spec == {"kind": "label", "classes": 3, "names": ["cat", "dog", "owl"], "fade": FADE}
    label = make_condition("told", spec, WIDTH, ())
    assert isinstance(label, Label) and label.names == ["cat", "dog", "owl"] and fit_condition("told", VALUES["label"], ())["classes"] == 3


TYPES: dict[str, tuple[Tensor, tuple[int, ...], str]] = {
    "integers": (torch.arange(4), (8, 8), "label"),
    "small integers": (torch.arange(4).to(torch.uint8), (), "label"),
    "numbers": (torch.rand(4), (8, 8), "numbers"),
    "rows of numbers": (torch.rand(4, 3), (8, 8), "numbers"),
    "rows of integers": (torch.ones(4, 3, dtype=torch.int64), (), "numbers"),
    "series": (torch.rand(4, 5, 3), (8, 8), "sequence"),
    "series beside vectors": (torch.rand(4, 5, 3), (), "sequence"),
    "channels beside signals": (torch.rand(4, 2, 25), (50,), "map"),
    "image": (torch.rand(4, 1, 8, 8), (8, 8), "map"),
    "bytes": (torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8), (8, 8), "map"),
    "Booleans": (torch.rand(4, 1, 8, 8) > 0.5, (8, 8), "mask"),
    "volume": (torch.rand(4, 2, 3, 4, 5), (6, 8, 10), "map"),
}


@pytest.mark.parametrize("case", TYPES)
def test_type_and_shape_say_the_kind(case: str) -> None:
    values, spatial, kind = TYPES[case]
    spec = fit_condition("told", values, spatial)
    assert spec["kind"] == kind
    encoder = make_condition("told", spec, WIDTH, spatial)
    assert bool(torch.isfinite(outputs(encoder(encoder.check(values)))).all())


@pytest.mark.parametrize(
    ("values", "spatial", "kind", "message"),
    [
        (torch.rand(4, 2, 3, 4), (), None, r"shape \(4, 2, 3, 4\); \(N,\), \(N, K\), \(N, L, K\) are allowed"),
        (torch.rand(4, 2, 3, 4, 5), (8, 8), None, r"or \(N, C, 2 axes of space\) are allowed"),
        (torch.rand(4), (), "label", r"is a label: integers \(N,\) are needed, got torch.float32 of shape \(4,\)"),
        (torch.rand(4, 2), (8, 8), "map", r"of shape \(4, 2\) is no map for data of 2 axes of space"),
        (torch.rand(4, 2, 3), (), "mask", "is no mask for data of 0 axes"),
        (torch.rand(4, 2), (), "sequence", "is no sequence"),
        (torch.rand(4, 2, 3), (8, 8), "numbers", "is no numbers"),
        (torch.rand(4, 2), (), "text", "condition 'told': texts are uint8 .*got torch.float32 of shape"),
        (torch.zeros(4, 2, dtype=torch.uint8), (), "text", "4 captions have not a single word; at least one is needed"),
        (torch.rand(4), (), "colour", "unknown kind of condition 'colour'"),
    ],
)
def test_values_of_no_kind_are_one_line(values: Tensor, spatial: tuple[int, ...], kind: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fit_condition("told", values, spatial, kind)
    assert "\n" not in str(caught.value)


def test_other_names_of_the_kinds() -> None:
    assert fit_condition("told", torch.rand(4, 2), (), "vector")["kind"] == "numbers"
    assert isinstance(make_condition("told", {"kind": "field"}, WIDTH, GRID), Map)


@pytest.mark.parametrize("name", ["x", "c", "t", "kind", "seed", "", 3])
def test_names_that_are_arguments_are_refused(name: Any) -> None:
    assert not isinstance(name, str) or not name or name in RESERVED
    with pytest.raises(ValueError, match=rf"^a condition cannot be called {name!r}; names other than .*weighting") as caught:
        make_condition(name, {"kind": "numbers"}, WIDTH, ())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "spatial", "message"),
    [
        ({}, GRID, "unknown kind of condition None"),
        ({"kind": "colour"}, GRID, "unknown kind of condition 'colour'"),
        ({"kind": "numbers", "length": 3}, GRID, r"unknown option length of condition 'told' \(numbers\); known: size, mean, std"),
        ({"kind": "label"}, GRID, "missing 1 required positional argument: 'classes'"),
        ({"kind": "label", "classes": 0}, GRID, "classes must be an integer of at least 1, got 0"),
        ({"kind": "label", "classes": 2, "names": ["a"]}, GRID, "has 2 classes and 1 names"),
        ({"kind": "numbers", "size": 2, "mean": [0.0]}, GRID, r"needs 2 mean\(s\) and 2 positive std\(s\), got \[0.0\]"),
        ({"kind": "numbers", "std": [0.0]}, GRID, r"positive std\(s\), got \[0.0\] and \[0.0\]"),
        ({"kind": "numbers", "std": [math.nan]}, GRID, r"positive std\(s\)"),
        ({"kind": "map"}, (), "is a map over space, and the data are vectors: give it as numbers"),
        ({"kind": "map", "grid": [4]}, GRID, r"has a grid of 1 axes, \[4\], for data of 2"),
        ({"kind": "text", "words": []}, GRID, "a list of 1 .. 65,536 words is needed, got 0 entries"),
        ({"kind": "text", "words": ["a", "a"]}, GRID, "the list has 'a' more than once"),
        ({"kind": "text", "words": ["a"], "length": 0}, GRID, "length must be a whole number in 1 .. 1,024, got 0"),
        ({"kind": "text", "words": ["a"], "width": 10, "heads": 4}, GRID, "width must be a multiple of heads"),
        ({"kind": "mask", "mean": [0.0]}, GRID, "unknown option mean"),
    ],
)
def test_bad_specs_are_one_line(spec: dict[str, Any], spatial: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_condition("told", spec, WIDTH, spatial)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "value", "error", "message"),
    [
        ("label", torch.tensor([0, 4]), ValueError, r"must be in 0 .. 2 \(3: not given\), got 0 .. 4"),
        ("label", torch.tensor([-1, 0]), ValueError, "got -1 .. 0"),
        ("label", torch.zeros(2), TypeError, "must hold integers in 0 .. 2, got torch.float32"),
        ("label", torch.zeros(2, dtype=torch.bool), TypeError, "got torch.bool"),
        ("label", torch.zeros(2, 1, dtype=torch.int64), ValueError, r"must have shape \(B,\), one class for each sample, got \(2, 1\)"),
        ("numbers", torch.zeros(2, 2), ValueError, r"must be numbers of shape \(B, 3\), got \(2, 2\)"),
        ("numbers", torch.zeros(2), ValueError, r"got \(2,\)"),
        ("numbers", torch.full((2, 3), torch.inf), ValueError, "holds infinite values; finite numbers are needed, NaN where one is not"),
        ("numbers", torch.zeros(2, 3, dtype=torch.complex64), TypeError, "must hold real numbers, got torch.complex64"),
        ("sequence", torch.zeros(2, 6, 2), ValueError, "has at most 5 places, got 6"),
        ("sequence", torch.zeros(2, 5, 3), ValueError, r"must be a sequence of shape \(B, \*, 2\), got \(2, 5, 3\)"),
        ("map", torch.zeros(2, 2, *GRID), ValueError, r"must be a map of shape \(B, 2, 4, 6\), got \(2, 2, 8, 12\)"),
        ("text", torch.zeros(2, 3, 17), ValueError, "must be a list of strings, .*integers .B, L, 17. with L <= 16, got torch.float32"),
        ("text", torch.zeros(2, 17, 17, dtype=torch.int32), ValueError, r"with L <= 16, got torch.int32 of shape \(2, 17, 17\)"),
        ("text", torch.full((2, 3, 17), 5000), ValueError, "must hold 0 .. [0-9]+, got 5000 .. 5000"),
        ("text", torch.full((2, 3), 200, dtype=torch.uint8), ValueError, "texts are UTF-8 filled up with zeros, got bytes that are not"),
        ("mask", torch.full((2, 1, *GRID), 0.5), ValueError, r"is a mask of 0 and 1, got values 0.5 .. 0.5"),
    ],
)
def test_bad_values_are_one_line(kind: str, value: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^condition 'told'.*{message}") as caught:
        made(kind).check(value)
    assert "\n" not in str(caught.value)


def test_masks_are_taken_as_they_are() -> None:
    encoder, values = made("mask"), VALUES["mask"]
    assert isinstance(encoder, Mask) and encoder.spec == {"kind": "mask", "channels": 1, "grid": list(GRID)}
    found = encoder(encoder.check(values)).detach()
    assert torch.equal(found[:, 0], values[:, 0].float())
    assert torch.equal(found, encoder(encoder.check(values.long())).detach())


def test_one_number_needs_no_second_axis() -> None:
    encoder = make_condition("told", {"kind": "numbers", "mean": [3.0], "std": [2.0]}, WIDTH, ())
    assert torch.equal(encoder(torch.tensor([1.0, 5.0])), encoder(torch.tensor([[1.0], [5.0]])))
    assert torch.equal(encoder(torch.tensor([1, 5])), encoder(torch.tensor([1.0, 5.0])))
    assert torch.equal(encoder.check(torch.zeros(0)), torch.zeros(0, 1))


@pytest.mark.parametrize(("dtype", "classes"), [(torch.uint8, 256), (torch.int8, 128)])
def test_labels_of_narrow_integers_have_a_null(dtype: torch.dtype, classes: int) -> None:
    encoder = make_condition("told", {"kind": "label", "classes": classes}, WIDTH, ())
    values = torch.arange(classes).to(dtype)
    assert torch.equal(encoder.null(values), torch.full((classes,), classes))
    assert torch.equal(encoder.check(values), torch.arange(classes))


def test_whole_numbers_that_are_no_classes_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"'told' has 5,000,001 classes, 0 .. 5,000,000; at most 100,000 are allowed .* kind 'numbers'"):
        fit_condition("told", torch.tensor([3, 5_000_000]), ())
    assert fit_condition("told", torch.tensor([3, 5_000_000]), (), "numbers")["kind"] == "numbers"
