import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from toys import TINY_RUN, Command

from sde_gen.report.events import EventWriter

ENTRIES = [
    {"step": 10, "seconds": 2.0, "loss": 0.9},
    {"step": 20, "seconds": 4.0, "loss": 0.8, "validation": 0.7, "levels": [-1.0, 2.0], "level_loss": [0.6, 0.8]},
]


class Fake:
    """Stands for SummaryWriter."""

    made: ClassVar[list["Fake"]] = []

    def __init__(self, directory: str, purge_step: int | None = None) -> None:
        self.directory, self.purge_step, self.closed = directory, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        Fake.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Fake
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Fake, "made", [])
    return Fake.made


def test_every_number_of_the_history_is_a_scalar(fake: list[Fake], tmp_path: Path) -> None:
    with EventWriter(tmp_path, batch=32, first_step=10) as writer:
        for entry in ENTRIES:
            writer.add(entry)
    assert fake[0].closed and fake[0].purge_step == 10 and fake[0].directory == str(tmp_path)
    assert fake[0].scalars == [
        ("loss", 0.9, 10),
        ("loss", 0.8, 20),
        ("validation", 0.7, 20),
        ("level_loss/-1.00", 0.6, 20),
        ("level_loss/+2.00", 0.8, 20),
        ("samples_per_second", 160.0, 20),
    ]


def test_a_missing_package_is_one_line_before_any_work(sde_gen_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = sde_gen_command("run", *TINY_RUN, "--tensorboard", "--out", "mine")
    assert code == 2 and len(err) == 1 and "pip install tensorboard" in err[0] and not Path("mine").exists()


def test_real_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventWriter(tmp_path, batch=32) as writer:
        for entry in ENTRIES:
            writer.add(entry)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [round(event.value, 6) for event in events.Scalars("loss")] == [0.9, 0.8]
    assert events.Scalars("samples_per_second")[0].step == 20
