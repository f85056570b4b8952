"""Shared by all tests."""

from pathlib import Path

import pytest
import torch
from toys import Command

from sde_gen.cli import main

# The tensors here are small: threads would only wait for each other, and parallel runs would fight.
torch.set_num_threads(1)


@pytest.fixture
def sde_gen_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`sde-gen` in an empty directory: its exit code and the lines of stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sde_gen.evaluation.FRAMES", 4)  # a film of points draws each frame as a figure

    def call(*arguments: str) -> tuple[int, list[str], list[str]]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call
