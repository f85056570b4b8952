from pathlib import Path

import pytest
from PIL import Image

from sde_gen.report import plot_comparison


def row(solver: str, calls: int, value: float) -> dict[str, object]:
    return {"solver": solver, "calls": calls, "seconds": 0.1 * calls, "distance": {"value": value, "std_error": 0.3}}


def test_a_comparison_with_and_without_held_out_data(tmp_path: Path) -> None:
    rows = [row("ancestral", calls, 100 / calls) for calls in (5, 20, 100)] + [
        row("ddim", 5, 9.0),
        {"solver": "pc", "calls": 5, "seconds": 1.0},
    ]
    plain = plot_comparison(rows, tmp_path / "plain.png", "distance")
    banded = plot_comparison(rows, tmp_path / "banded.png", "distance", {"value": 1.5, "std_error": 2.0})
    with Image.open(plain) as one, Image.open(banded) as other:
        assert min(one.size) > 100 and one.convert("RGB").tobytes() != other.convert("RGB").tobytes()
    with pytest.raises(ValueError, match="no row has a distance"):
        plot_comparison(rows[-1:], tmp_path / "none.png", "distance")
