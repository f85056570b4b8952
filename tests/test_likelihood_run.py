import json
from pathlib import Path

import pytest
from PIL import Image
from toys import TINY_RUN, Command


@pytest.mark.parametrize("labels", [False, True])
def test_digits_are_measured_in_bits_with_error_bars(sde_gen_command: Command, tmp_path: Path, labels: bool) -> None:
    run = tmp_path / "mine"
    assert sde_gen_command("run", *TINY_RUN, *(["--labels"] if labels else []), "--out", str(run))[0] == 0
    code, out, err = sde_gen_command("likelihood", "--run", str(run), "--images", "8", "--tolerance", "1e-2")
    assert (code, err) == (0, [])
    assert out[0].startswith("reusing")
    by_name = {line.split()[0]: line for line in out}
    for name in ("training", "held-out", "noise", "inverted", "constant"):
        assert "+-" in by_name[name] and "bits/dim (trace 0." in by_name[name] and "test set 0." in by_name[name]
    for name in ("histogram.png", "extremes.png"):
        with Image.open(run / "likelihood" / name) as image:
            assert min(image.size) > 100
    saved = json.loads((run / "likelihood" / "likelihood.json").read_text())
    assert saved["unit"] == "bits/dim"
    assert f"{saved['parts']['held-out']['value']:.3f}" in by_name["held-out"]
    assert "bits/dim (L_0" in by_name["chain"] and any("neither must be the smaller" in line for line in out)
    assert len(saved["parts"]["held-out"]["each"]) == 8 and saved["parts"]["held-out, uniform"]["dequantization"] == "uniform"


def test_continuous_data_is_measured_in_nats(sde_gen_command: Command, tmp_path: Path) -> None:
    run = tmp_path / "points"
    assert sde_gen_command("run", *TINY_RUN, "--data", "gaussians8", "--out", str(run))[0] == 0
    code, out, err = sde_gen_command("likelihood", "--run", str(run), "--images", "20", "--tolerance", "1e-3")
    assert (code, err) == (0, [])
    assert sum("nats/dim" in line for line in out) >= 2 and "bits" not in "".join(out)
    assert not (run / "likelihood" / "extremes.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run", "nowhere"], "nowhere is not a run directory"),
        (["--images", "0"], "images must be a whole number of at least 1"),
        (["--dequantization", "flow"], "unknown dequantization 'flow'"),
        (["--divergence", "magic"], "unknown divergence 'magic'"),
        (["--tolerance", "-1"], "tolerance must be positive"),
        (["--seed", "-1"], "seed must be in"),
    ],
)
def test_bad_input_is_one_line(sde_gen_command: Command, arguments: list[str], said: str) -> None:
    code, out, err = sde_gen_command("likelihood", *arguments)
    assert code == 2 and out == [] and len(err) == 1 and said in err[0]
