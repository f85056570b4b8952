import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sde_gen

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "restoration_digits.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_restoration_digits", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the Gaussian of the digits' own moments the default is calibrated, from steps that are fine enough, and sharper than pigdm."""
    data = sde_gen.load_dataset("digits")
    units = sde_gen.data.Normalizer(torch.tensor([[[4.9]]]), torch.tensor([[[6.0]]]))
    moments = sde_gen.models.moments.Moments.fit(units.encode(data.train))
    sde = sde_gen.make_sde("vp")
    model = sde_gen.ScoreModel(
        lambda x, c: moments.denoise(x, *(float(v) for v in sde.marginal(c.double().flatten()[0]))),
        sde,
        "data",
        normalizer=units,
        moments=moments,
        prior="matched",
        data_std=1.0,
        clock="time",
    )
    module = load()
    module.sde_gen = type("Given", (), {**vars(sde_gen), "load": staticmethod(lambda run: model)})  # a closed form is not saved
    options = ["--problems", "24", "--methods", "twisted", "pigdm", "--particles", "64", "--samples", "16", "--steps", "60"]
    module.main([*options, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["truths"]) == ["truths from the model", "held-out digits"]
    rows = found["truths"]["truths from the model"]
    assert list(rows) == ["twisted 64", "pigdm"] and rows["twisted 64"]["sbc_p"] > 0.05 and rows["twisted 64"]["effective"] > 10
    assert rows["twisted 64"]["energy"]["value"] < rows["pigdm"]["energy"]["value"]
    assert "| twisted 64 |" in capsys.readouterr().out
