"""Pictures of samples by condition and setting, for every shape of data."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sde_gen.report import picture_conditions

SHAPES = {
    "points": (2,),
    "vectors": (5,),
    "numbers": (1,),
    "signals": (2, 30),
    "images": (1, 8, 8),
    "colour": (3, 8, 6),
    "volumes": (1, 5, 6, 7),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_has_a_picture(tmp_path: Path, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = SHAPES[kind]
    x = torch.randn(6, *shape, generator=generator)
    x[0] = torch.nan  # samples may be lost
    maps = {} if len(shape) == 1 else {"field": torch.randn(3, *shape, generator=generator)}
    columns = {"strength 1": x, "strength 4": 2 * x}
    picture = picture_conditions(columns, ["a 1", "a 2", "a 3"], tmp_path / "x.png", maps=maps, reference=x.flatten(1))
    with Image.open(picture) as image:
        assert image.width > image.height > 100


def test_each_row_shows_its_own_samples_and_each_map_in_its_own_range(tmp_path: Path) -> None:
    """Three conditions of a dark, a middle and a bright image, beside maps that are bright, middle and dark."""
    x = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(2)[:, None, None, None].expand(6, 1, 4, 4)
    maps = {"map": torch.tensor([900.0, 500.0, 100.0])[:, None, None, None].expand(3, 1, 4, 4)}
    with Image.open(picture_conditions({"one": x}, ["a", "b", "c"], tmp_path / "x.png", (0.0, 1.0), maps)) as image:
        grey = torch.tensor(list(image.convert("L").tobytes())).reshape(image.height, image.width).float()
    left, right = (grey[:, int(share * image.width)] for share in (0.25, 0.88))
    for column, expected in ((right, [0, 128, 255]), (left, [255, 128, 0])):
        middles = [column[int(place * len(column))] for place in (0.27, 0.55, 0.85)]
        assert middles == pytest.approx(expected, abs=8)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 conditions need as many samples each, in every column, not \\[4\\]"):
        picture_conditions({"one": torch.zeros(4, 1, 4, 4)}, ["a", "b", "c"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="0 conditions need"):
        picture_conditions({"one": torch.zeros(4, 1, 4, 4)}, [], tmp_path / "x.png")
