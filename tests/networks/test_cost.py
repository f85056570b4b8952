"""What a network costs is counted in closed form, and what would cost too much is made cheaper."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sde_gen.networks import MOST_TOKENS, NETWORKS, affordable_options, make_network, summary

CASES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("mlp", (7,), {"width": 16, "depth": 2}),
    ("mlp", (2, 5, 6), {"width": 16, "depth": 1, "expansion": 3}),
    ("transformer", (3, 9, 14), {"width": 16, "depth": 2, "patch": 4}),
    ("transformer", (1, 33), {"width": 8, "depth": 1, "heads": 2}),
    ("unet", (1, 8, 8), {"width": 32, "multipliers": [1, 2], "attention": [1]}),
    ("unet", (3, 33, 47), {"width": 8, "multipliers": [1, 2, 3], "attention": [0, 2], "patch": 2, "blocks": 2}),
    ("unet", (2, 50), {"width": 8, "multipliers": [1, 2, 2], "attention": [1]}),
    ("unet", (1, 9, 10, 11), {"width": 8, "multipliers": [2, 1], "attention": []}),
]


@pytest.mark.parametrize(("name", "shape", "options"), CASES)
@pytest.mark.parametrize("classes", [None, 4])
def test_the_closed_form_is_what_pytorch_counts(name: str, shape: tuple[int, ...], options: dict[str, Any], classes: int | None) -> None:
    with torch.device("meta"):  # on the CPU PyTorch does not count attention
        network = make_network(name, shape, classes, 2 * shape[0], **options).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *shape), torch.zeros(1))
    assert network.flops() == counter.get_total_flops()


def test_the_summary_counts_attention_on_a_cpu_too() -> None:
    network = make_network("transformer", (1, 64), width=8, depth=1, heads=2, patch=1)
    flops = network.flops()
    assert flops is not None and f"{flops / 1e9:.3g} GFLOP" in summary(network, (1, 64))


@pytest.mark.parametrize(
    ("name", "shape", "options", "tokens"),
    [
        ("mlp", (7,), {}, 0),
        ("transformer", (1, 9, 14), {"patch": 4}, 3 * 4),
        ("unet", (1, 33, 47), {"multipliers": [1, 1, 1], "attention": [1], "width": 8, "patch": 2}, 9 * 12),
        ("unet", (1, 33, 47), {"multipliers": [1, 1, 1], "attention": [2], "width": 8, "patch": 2}, 5 * 6),
        ("unet", (1, 33, 47), {"multipliers": [1, 1], "attention": [], "width": 8}, 0),
    ],
)
def test_attention_runs_over_so_many_positions(name: str, shape: tuple[int, ...], options: dict[str, Any], tokens: int) -> None:
    assert make_network(name, shape, **options).tokens() == tokens


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"diffusers"}))  # whose options are that library's
def test_what_is_cheap_stays_as_it_is(name: str) -> None:
    options = {"width": 16}
    assert affordable_options(name, (3, 32, 32), options) is options


@pytest.mark.parametrize(
    ("name", "shape"), [("unet", (1, 256, 512)), ("unet", (2, 16384)), ("unet", (1, 64, 64, 64)), ("transformer", (1, 256, 512))]
)
def test_attention_over_too_many_positions_becomes_the_nearest_that_pays(name: str, shape: tuple[int, ...]) -> None:
    found = affordable_options(name, shape, {"width": 16})
    with torch.device("meta"):
        network = make_network(name, shape, **found)
    assert MOST_TOKENS / 2 ** len(shape) < network.tokens() <= MOST_TOKENS and found["width"] == 16


def test_a_limit_of_operations_is_kept_or_nearly_the_least_taken() -> None:
    options = {"width": 16, "multipliers": [1, 2], "attention": [1]}
    for limit in (1e9, 1e7, 1.0):
        found = affordable_options("unet", (1, 128, 128), options, limit)
        costs = []
        for chosen in (found, *NETWORKS["unet"].cheaper((1, 128, 128), options)):
            with torch.device("meta"):
                costs.append(make_network("unet", (1, 128, 128), **chosen).flops())
        assert costs[0] <= max(limit, 1.5 * min(costs)), limit
