"""The determinism profile: what decides a replay's bits besides the program, as a closed record.

Flags are given to a fresh process before torch is imported; facts are what that process then found. Neither
ever holds a variable's name or a path, so nothing in a proof can steer the verifier's process further.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Fact = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._+ ()-]{1,64}\Z")]


MAX_THREADS = 64
"""Most threads that a recording takes by itself and that a verifier gives by default: with more, steps of the models
that one machine trains gain nothing."""


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Flags of a training process; ``native`` leaves the choice to the machine."""

    device: Literal["cpu"] = "cpu"
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    """Intra-op threads. 1024: more than any machine of today has; a bound because the verifier starts them."""
    aten: Literal["native", "default", "avx2", "avx512"] = "native"
    onednn: Literal["native", "sse41", "avx2", "avx512_core"] = "native"
    mkl: Literal["native", "compatible", "avx2", "avx512"] = "native"
    deterministic: bool = False
    matmul: Literal["highest", "high", "medium"] = "highest"


class Platform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a training process found: recorded to explain a difference, never to set anything."""

    python: Fact
    torch: Fact
    numpy: Fact
    machine: Fact
    capability: Fact


def environment(profile: Profile) -> dict[str, str]:
    """The whole environment of a training process: these variables and no others."""
    threads = str(profile.threads)
    variables = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_DYNAMIC": "FALSE",
        # Idle threads sleep: spinning ones take five times as long when anything else uses the cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "MKL_DYNAMIC": "FALSE",
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        # For torch.compile: where a C++ compiler is and finds its own parts, no pool of processes that compile, and no
        # choice between kernels by how fast they were.
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_DETERMINISTIC": "1",
    }
    if profile.aten != "native":
        variables["ATEN_CPU_CAPABILITY"] = profile.aten
    if profile.onednn != "native":
        variables["ONEDNN_MAX_CPU_ISA"] = profile.onednn.upper()
    if profile.mkl != "native":
        variables["MKL_CBWR"] = profile.mkl.upper()
    return variables


ARITHMETIC = ("torch", "machine", "capability")
"""Facts that choose kernels. With other ones a control run of a few steps may agree where later steps do not: of a
training that begins at rate 0, say."""


def differences(recorded: Platform, here: Platform, facts: tuple[str, ...] = Platform.__struct_fields__) -> list[str]:
    """One line for each of the facts that differs."""
    return [
        f"{name}: recorded {old}, here {new}"
        for name in facts
        if (old := getattr(recorded, name)) != (new := getattr(here, name))
    ]


def same_software(recorded: Platform, here: Platform) -> bool:
    """Whether torch and numpy are of the recorded releases, in whatever builds.

    Another release may do something else: draw other numbers from the same generator, or take another step.
    """
    return all(
        getattr(recorded, name).partition("+")[0] == getattr(here, name).partition("+")[0]
        for name in ("torch", "numpy")
    )
