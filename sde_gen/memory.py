"""Running out of memory, told apart from other errors."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the accelerator's or the host's lack of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ("not enough memory", "can't allocate memory"))


def release() -> None:
    """Give cached memory back to the accelerator."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
