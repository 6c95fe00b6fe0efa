"""``torch.compile`` in a training process: what was compiled before must not change what is computed now.

Usually the second shape of an input is compiled for all shapes, and after some recompilations the rest runs
uncompiled. Both depend on what the process has seen, so a replay that is entered in the middle would compute
with other kernels. Here every shape is compiled for itself, and too many are an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pol.errors import PolError
from pol.messages import Program
from pol.replay import deferred
from pol.replay.sources import source_files

MOST_SHAPES = 64
"""Compilations of one function: eight times torch's default, since no kernel serves two shapes here."""

_REASONS = {
    "InvalidCxxCompiler": "no C++ compiler works",
    "CppCompileError": "the C++ compiler failed",
    "FailOnRecompileLimitHit": f"one function was compiled for more than {MOST_SHAPES} shapes or values",
}
_FIXES = {
    "InvalidCxxCompiler": "install g++ (with Python's headers) in /usr/local/bin, /usr/bin or /bin, where a training "
    "process looks for it, or leave torch.compile out",
    "CppCompileError": "see that g++ compiles with Python's headers, or leave torch.compile out",
    "FailOnRecompileLimitHit": "pad inputs to a few sizes, and pass numbers that change as tensors",
}


_eager = 0
"""How many contexts are open in which what is compiled runs uncompiled."""


def defer() -> None:
    """Load the compiler only when it is needed, if this process has not loaded it yet."""
    deferred.defer(_loaded)


def expect(program: Program) -> None:
    """Load the compiler now if a program will need it, as far as its sources tell: once here, and not in every fork."""
    if not deferred.is_deferred():
        return
    with contextlib.suppress(PolError, OSError):  # whoever runs the recipe says so
        sources = source_files(program.reference).values()
        if program.profile.deterministic or any(b"compile" in path.read_bytes() for path in sources):
            deferred.load()


def _loaded() -> None:
    """The compiler has been loaded in the middle of something: tell it what holds."""
    settle()
    torch.use_deterministic_algorithms(
        torch.are_deterministic_algorithms_enabled(), warn_only=torch.is_deterministic_algorithms_warn_only_enabled()
    )
    if _eager:
        torch.compiler.set_stance("force_eager")


def settle() -> None:
    """Once in a process, before anything is compiled."""
    if deferred.is_deferred():
        return  # when it is loaded
    from torch._dynamo import config

    config.automatic_dynamic_shapes = False
    config.recompile_limit = MOST_SHAPES
    config.fail_on_recompile_limit_hit = True


def forget() -> None:
    """Before a program is entered: nothing that an earlier entry compiled is in force."""
    if not deferred.is_deferred():
        torch._dynamo.reset()


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """A context in which what is compiled runs uncompiled."""
    global _eager
    if not deferred.is_deferred():
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    _eager += 1
    try:
        yield
    finally:
        _eager -= 1
        if not deferred.is_deferred():
            torch.compiler.set_stance("default")


def is_compiled(module: object) -> bool:
    """Whether a module is the wrapper of a compiled one."""
    return not deferred.is_deferred() and isinstance(module, torch._dynamo.OptimizedModule)


def explain(error: BaseException) -> str | None:
    """Why compiling failed and what to do; None: this error is of another kind."""
    seen: BaseException | None = error
    while seen is not None:
        for name in (type(seen).__name__, *(name for name in _REASONS if f"{name}:" in str(seen)[:200])):
            if name in _REASONS:
                return f"torch.compile: {_REASONS[name]}; {_FIXES[name]} ({_last_line(error)})"
        seen = seen.__cause__ or seen.__context__
    return None


def _last_line(error: BaseException) -> str:
    """The line of a message that says most: the compiler's own error, or else the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line.lower()), lines[0] if lines else "no message")[:200]
