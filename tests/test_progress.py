import io
import sys
import time

import pytest
from tqdm import tqdm

from sde_gen import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_line_comes_also_in_the_middle_of_one_long_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.02)
    with progress.bar(10, "training", "step", initial=2) as bar:
        bar.update(4)
        bar.set_postfix({"loss": "0.5"}, refresh=False)
        time.sleep(0.15)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 8 and all(line.startswith("training  6 of 10 steps, ") for line in lines)
    assert all(" to go (loss 0.5)" in line for line in lines)
    time.sleep(0.06)
    assert capsys.readouterr().err == "", "nothing after the end"


def test_time_to_go_counts_what_was_done_here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = progress.Lines(100, "training", "step", initial=60)
    monkeypatch.setattr(time, "monotonic", lambda: bar.began + 50)
    bar.update(20)
    assert bar.line() == "training  80 of 100 steps, 50 s, about 50 s to go"
    assert progress.Lines(None, "metrics", "part").line() == "metrics   0 s"


def test_short_work_says_nothing_and_no_show_nothing_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar(3, "training", "step") as bar:
        bar.update()
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    with progress.bar(3, "training", "step", show=False) as bar:
        assert bar.disable
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.bar(3, "training", "step") as bar:
        assert isinstance(bar, tqdm) and not bar.disable
        bar.update()
    assert "training" in screen.getvalue()
