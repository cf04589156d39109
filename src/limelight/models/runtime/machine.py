"""Distinguishing machine failures (memory, a device) from other errors."""

from __future__ import annotations

import errno
import re

import torch

# PyTorch raises plain RuntimeErrors for many of them; no error about arguments matches these patterns.
_OF_THE_MACHINE = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|\b(CUDA|HIP|MPS|XPU) (driver )?error|"
    r"\b(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|NCCL|MIOPEN|HIPBLAS)_STATUS_|NCCL error|device-side assert",
    re.IGNORECASE,
)


def machine_failed(error: BaseException) -> bool:
    """Return whether memory ran out or a device or disk failed, as opposed to an error of a module or file."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)):
        return True
    if isinstance(error, OSError):
        return error.errno in (errno.ENOMEM, errno.EIO, errno.ENOSPC, errno.EMFILE, errno.ENFILE)
    return isinstance(error, RuntimeError) and _OF_THE_MACHINE.search(str(error)) is not None
