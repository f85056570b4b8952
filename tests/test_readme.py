"""The README's Python blocks run as they are printed, in order, with little training."""

import re
from pathlib import Path

import pytest
import torch

import sde_gen
from sde_gen.training import TrainSettings

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BLOCKS) == 5
    monkeypatch.chdir(tmp_path)
    train = sde_gen.train

    def briefly(data: torch.Tensor, steps: int = 2000, **settings: object) -> sde_gen.ScoreModel:
        assert TrainSettings(steps=steps).steps == steps
        small = {"width": 16, "depth": 1}
        return train(data[:64], steps=3, batch=16, network_options=small, device="cpu", progress=False, **settings)

    monkeypatch.setattr(sde_gen, "train", briefly)
    scope: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, scope)
    out = scope["out"]
    assert isinstance(out, sde_gen.Samples) and out.x.shape == (100, 1, 8, 8)
    assert list(tmp_path.glob("checkpoint/*/weights.safetensors"))


def test_every_solver_and_sde_is_in_the_readme() -> None:
    for name in (*sde_gen.sdes.SDES, *sde_gen.solvers.SOLVERS):
        assert f"`{name}`" in README, name


def test_its_pictures_are_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    for picture in pictures:
        assert (Path(__file__).parent.parent / picture).stat().st_size < 300_000, picture
