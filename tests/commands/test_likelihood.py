import json
from pathlib import Path

import pytest
from PIL import Image
from toys import TINY_RUN, Command

from sde_gen.metrics import features


@pytest.fixture(autouse=True)
def short_feature_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks how good the features are."""
    monkeypatch.setitem(features._SETTINGS, "steps", 20)


def test_labelled_digits_are_measured_in_bits_with_error_bars(sde_gen_command: Command, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    assert sde_gen_command("run", *TINY_RUN, "--labels", "--out", str(run))[0] == 0
    code, out, err = sde_gen_command("likelihood", "--run", str(run), "--images", "8", "--tolerance", "1e-2")
    assert (code, err) == (0, [])
    assert out[0].startswith("reusing")
    by_name = {line.split()[0]: line for line in out}
    for name in ("training", "held-out", "noise", "inverted", "constant"):
        assert "+-" in by_name[name] and "bits/dim (trace 0." in by_name[name] and "test set 0." in by_name[name]
    for name in ("histogram.png", "extremes.png", "terms.png"):
        with Image.open(run / "likelihood" / name) as image:
            assert min(image.size) > 100
    saved = json.loads((run / "likelihood" / "likelihood.json").read_text())
    assert saved["unit"] == "bits/dim"
    assert f"{saved['parts']['held-out']['value']:.3f}" in by_name["held-out"]
    assert "bits/dim (L_0" in by_name["chain"] and any("neither must be the smaller" in line for line in out)
    assert by_name["chain"].endswith("as a chain of 1000 steps") and "terms.png" in by_name["pictures"]
    first = out.index(by_name["chain"])
    assert out[first + 1].endswith("chain of 50 steps") and out[first + 2].endswith("the limit of ever more steps")
    bounds = [saved["parts"][f"held-out, {name}"] for name in ("chain of 1000 steps", "chain of 50 steps", "continuous")]
    assert [len(bound["terms"]) for bound in bounds] == [1000, 50, 65]
    # the same first time, decoder and ends; more steps, a smaller bound
    assert len({(bound["t_min"], bound["decoder"], bound["prior"]) for bound in bounds}) == 1
    assert bounds[2]["value"] < bounds[0]["value"] < bounds[1]["value"] and None in bounds[0]["terms"]
    assert len(saved["parts"]["held-out"]["each"]) == 8 and saved["parts"]["held-out, uniform"]["dequantization"] == "uniform"


def test_a_learned_variance_is_measured_beside_the_fixed_ones(sde_gen_command: Command, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    assert sde_gen_command("run", *TINY_RUN, "--learned-variance", "--solver", "ancestral", "--out", str(run))[0] == 0
    code, out, err = sde_gen_command("likelihood", "--run", str(run), "--images", "4", "--tolerance", "1e-2", "--divergence", "hutchinson")
    assert (code, err) == (0, [])
    for steps in (1000, 50):
        for ending in ("", ", fixed_large", ", learned"):
            assert sum(line.endswith(f"chain of {steps} steps{ending}") for line in out) == 1


def test_continuous_data_is_measured_in_nats(sde_gen_command: Command, tmp_path: Path) -> None:
    run = tmp_path / "points"
    assert sde_gen_command("run", *TINY_RUN, "--data", "gaussians8", "--set", "data.limit=500", "--out", str(run))[0] == 0
    code, out, err = sde_gen_command("likelihood", "--run", str(run), "--images", "20", "--tolerance", "1e-3")
    assert (code, err) == (0, [])
    assert sum("nats/dim" in line for line in out) >= 2 and "bits" not in "".join(out)
    assert not (run / "likelihood" / "extremes.png").exists() and not (run / "likelihood" / "terms.png").exists()


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
