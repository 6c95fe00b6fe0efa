"""What a training process runs on."""

from __future__ import annotations

import platform as host

import numpy as np
import torch

from pol.profile import Platform


def this_platform() -> Platform:
    """What this process runs on."""
    return Platform(
        python=host.python_version(),
        torch=str(torch.__version__),
        numpy=np.__version__,
        machine=host.machine(),
        capability=torch.backends.cpu.get_cpu_capability(),
    )
