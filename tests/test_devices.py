from pathlib import Path

import pytest
import torch
from toys import TINY_RUN, Command

from sde_gen.devices import OnItsWay, find_device, float32_products, random_state, set_random_state


def allowed() -> tuple[bool, bool, bool]:
    """By each of PyTorch's names, which refuse to answer where they have been set apart."""
    products = torch.backends.cuda.matmul.allow_tf32
    return products, torch.get_float32_matmul_precision() != "highest", torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("tf32", [True, False])
def test_products_have_the_precision_asked_for_and_then_that_of_before(tf32: bool) -> None:
    before = allowed()
    with pytest.raises(KeyError), float32_products(tf32):
        assert allowed() == (tf32, tf32, tf32)
        raise KeyError
    assert allowed() == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this PyTorch has no newer names")
@pytest.mark.parametrize("tf32", [True, False])
def test_where_the_newer_names_are_in_use(tf32: bool) -> None:
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        torch.backends.cudnn.rnn.fp32_precision = "tf32"  # which the older names cannot say
        with float32_products(tf32):
            assert [place.fp32_precision for place in places] == ["tf32" if tf32 else "ieee"] * 2
        assert [place.fp32_precision for place in places] == ["ieee"] * 2
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    assert allowed() == (False, False, True)


def test_a_value_on_its_way_is_that_of_when_it_left(device: torch.device) -> None:
    value = torch.zeros(1000, 1000, device=device)
    for _ in range(20):
        value += 1.0
    way = OnItsWay(value[0, 0] == 20)
    value.zero_()
    assert bool(way.arrived())


def test_the_generators_of_a_device_are_set_together(device: torch.device) -> None:
    before = random_state(device)
    drawn = [torch.rand(3), torch.rand(3, device=device)]
    set_random_state(before, device)
    assert torch.equal(torch.rand(3), drawn[0]) and torch.equal(torch.rand(3, device=device), drawn[1])
    set_random_state(torch.cat((before[: len(torch.get_rng_state())], torch.zeros(16, dtype=torch.uint8))), torch.device("cpu"))
    assert torch.equal(torch.rand(3), drawn[0]), "of what another device kept, the host's part alone"


def test_a_device_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"^unknown device 'gpu'; try cpu, cuda or cuda:0$"):
        find_device("gpu")


def test_channels_last_on_a_table_is_refused_before_anything_is_written(sde_gen_command: Command, tmp_path: Path) -> None:
    code, _, err = sde_gen_command("run", "--data", "moons", *TINY_RUN, "--set", "training.channels_last=true", "--out", "run")
    assert code == 2 and len(err) == 1 and "channels_last is for images and volumes" in err[0]
    assert not (tmp_path / "run").exists()
