"""The width of a run's average, chosen after its training, is the one that every command uses."""

from pathlib import Path

import torch
from toys import Command

from sde_gen.training import load

RUN = ("run", "--data", "gaussians8", "--set", "data.limit=300", "--set", "model.options={width: 16, depth: 1}", "--batch", "32")
FEW = ("--train-steps", "20", "--set", "training.evaluations=1", "--samples", "33", "--solver", "em", "--steps", "3", "--no-progress")
WIDTHS = ("--set", "training.ema_width=0.05", "--set", "training.ema_widths=[0.1, 0.2]")


def weights(path: Path) -> torch.Tensor:
    return torch.cat([p.flatten() for p in load(path).parameters()])


def test_a_width_is_chosen_and_the_run_goes_on_with_it(sde_gen_command: Command, tmp_path: Path) -> None:
    run = (*RUN, *FEW, *WIDTHS, "--out", "here")
    assert sde_gen_command(*run)[0] == 0
    before = weights(tmp_path / "here")
    code, out, err = sde_gen_command("average", "--run", "here", "--ema-width", "0.14")
    assert (code, err) == (0, []) and out[0].startswith("average   weights of relative width 0.14, whose profile is missed by")
    after = weights(tmp_path / "here")
    assert not torch.equal(before, after)
    code, out, _ = sde_gen_command(*run)
    assert code == 0 and any(line.startswith("reusing   the network") for line in out), "the training is the same one"
    assert torch.equal(weights(tmp_path / "here"), after)
    for width, message in (("0.01", "the averages kept, of widths 0.05, 0.1, 0.2, miss one of width 0.01"), ("0.3", "below 0.28, got 0.3")):
        code, _, err = sde_gen_command("average", "--run", "here", "--ema-width", width)
        assert code == 2 and len(err) == 1 and message in err[0]
    assert torch.equal(weights(tmp_path / "here"), after)
    assert sde_gen_command("average", "--run", "here", "--ema-width", "0.05")[0] == 0
    assert torch.equal(weights(tmp_path / "here"), before)
