"""Out of memory while sampling: smaller batches, the same samples."""

import pytest
import torch

import sde_gen
from sde_gen.exact.mixtures import GaussianData
from sde_gen.memory import out_of_memory

DATA = GaussianData(torch.tensor([0.7, -0.3]), torch.tensor([[0.5, 0.2], [0.2, 0.4]]))


class Small:
    """A network that fits at most `most` samples, and counts what it was given."""

    def __init__(self, most: int, error: Exception) -> None:
        self.exact = DATA.model(sde_gen.make_sde("vp"))
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise self.error
        return self.exact.denoise(x, t)


def model(network: object) -> sde_gen.ScoreModel:
    return sde_gen.ScoreModel(network, sde_gen.make_sde("vp"), prediction="data", moments=DATA.model(sde_gen.make_sde("vp")).moments)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")])
@pytest.mark.parametrize("solver", ["pc", "ode", "dpm"])
def test_sampling_halves_its_batch_and_gives_the_same_samples(solver: str, error: Exception) -> None:
    options = {"seed": 3, "dtype": torch.float64, "progress": False}
    steps = {} if solver == "ode" else {"steps": 10}
    whole = sde_gen.sample(model(Small(100, error)), (13, 2), solver, **options, **steps)
    with pytest.warns(UserWarning, match="out of memory: going on with batches of"):
        parts = sde_gen.sample(model(Small(4, error)), (13, 2), solver, **options, **steps)
    torch.testing.assert_close(parts.x, whole.x, rtol=1e-9, atol=1e-9)
    assert parts.nfe.tolist() == whole.nfe.tolist() and not parts.failed.any()


def test_one_sample_too_many_is_the_errors_own(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        sde_gen.sample(model(Small(0, torch.OutOfMemoryError("CUDA out of memory"))), (4, 2), "dpm", steps=3, dtype=torch.float64)


def test_other_errors_are_not_taken_for_it() -> None:
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("x"))
    assert not out_of_memory(RuntimeError("shape mismatch")) and not out_of_memory(ValueError("not enough memory"))
    network = Small(4, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        sde_gen.sample(model(network), (13, 2), "dpm", steps=3, dtype=torch.float64)
