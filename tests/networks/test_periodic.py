import pytest
import torch

from sde_gen import load, save
from sde_gen.models.score import ScoreModel
from sde_gen.networks import make_network
from sde_gen.networks.unet import coordinate_channels
from sde_gen.sdes import make_sde

CASES = [((3, 16), ["L"]), ((2, 8, 12), ["W"]), ((2, 8, 12), ["H", "W"]), ((1, 4, 8, 6), ["D", "H"])]


def filled(shape: tuple[int, ...], periodic: list[str], **options: object) -> torch.nn.Module:
    """A U-Net with weights that are not zero anywhere."""
    torch.manual_seed(0)
    network = make_network("unet", shape, periodic=periodic, width=8, multipliers=(1, 2), attention=(1,), heads=2, **options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.double().eval().requires_grad_(False)


@pytest.mark.parametrize(("shape", "periodic"), CASES)
@pytest.mark.parametrize("patch", [1, 2])
def test_moving_the_data_along_a_circle_moves_the_result(shape: tuple[int, ...], periodic: list[str], patch: int):
    if any(size % (2 * patch) for size in shape[1:]):
        pytest.skip("no multiple of the deepest level's points")
    letters = {2: "L", 3: "HW", 4: "DHW"}[len(shape)]
    network = filled(shape, periodic, patch=patch)
    x, c = torch.randn(2, *shape, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    y = network(x, c)
    for axis, letter in enumerate(letters, 2):
        moved = network(x.roll(2 * patch, axis), c)
        same = bool((moved - y.roll(2 * patch, axis)).abs().max() < 1e-9 * y.abs().max())
        assert same == (letter in periodic)
    plain = make_network("unet", shape, width=8, multipliers=(1, 2), attention=(1,), heads=2, patch=patch)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert network.flops() == plain.flops()


def test_coordinates_tell_the_place(tmp_path):
    network = filled((2, 8, 12), ["W"], coordinates=True)
    x, c = torch.zeros(1, 2, 8, 12, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    y = network(x, c)
    assert float(y.std(3).mean()) > 1e-3 * float(y.abs().mean())  # without them a constant along the circle
    assert float(filled((2, 8, 12), ["W"])(x, c).std(3).max()) < 1e-9
    found = coordinate_channels((3, 4), (1,))
    torch.testing.assert_close(found[0], torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 4))
    torch.testing.assert_close(found[1, 0], torch.tensor([0.0, 1.0, 0.0, -1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[2, 0], torch.tensor([1.0, 0.0, -1.0, 0.0]), atol=1e-6, rtol=0)
    model = ScoreModel(network.float(), make_sde("vp"))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.network.options["periodic"] == ["W"] and again.network.options["coordinates"]
    assert torch.equal(again.network(x.float(), c.float()), network(x.float(), c.float()))


def test_bad_axes_are_one_line():
    for options, error, words in (
        ({"periodic": ["L"]}, ValueError, r"axes among H, W of data with 2 of space, each once, got \['L'\]"),
        ({"periodic": ["W", "W"]}, ValueError, "each once"),
        ({"periodic": "W"}, TypeError, r"a list of letters of axes, such as \[W\], got 'W'"),
        ({"periodic": ["W"], "patch": 2}, ValueError, "multiples of 8 long with this patch and these levels; W of 8x12 is not"),
        ({"coordinates": 1}, TypeError, "coordinates must be true or false, got 1"),
    ):
        with pytest.raises(error, match=words):
            make_network("unet", (1, 8, 12), **options)
