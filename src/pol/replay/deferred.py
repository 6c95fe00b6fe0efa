"""``torch._dynamo``, the compiler, loaded when something of it is needed.

Every optimizer imports it, for two functions that do nothing where nothing is compiled; loading it takes longer than
all the rest of torch. So a module of its name stands for it until somebody asks for anything else: who asks gets that
from the real one, and so does everybody from then on. Where torch is made otherwise than this file knows, the compiler
is merely loaded earlier.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


class _StandIn(ModuleType):
    """Stands for the compiler; ``loaded`` is called when the real one has taken its place."""

    def __init__(self, loaded: Callable[[], None]) -> None:
        super().__init__(NAME)
        self.__path__: list[str] = []  # it has modules in it, which ``_Within`` finds
        self.loaded = loaded
        self.marked: list[Callable[..., Any]] = []

    def graph_break(self, *_: object, **__: object) -> None:
        """Outside of compiled code nothing, as the real one."""

    def disable(self, *args: Any, **options: Any) -> Any:
        """The function as it is, where torch marks one of its own as not to be compiled."""
        if sys._getframe(1).f_globals.get("__name__") != "torch._compile":
            return load().disable(*args, **options)
        self.marked.append(args[0])
        return args[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # which some ask of every module that there is
            raise AttributeError(name)
        return getattr(load(), name)


class _Within(importlib.abc.MetaPathFinder):
    """Finds the modules in the compiler for whoever imports one of them first: those of the real one."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        if not name.startswith(NAME + ".") or not is_deferred():
            return None
        load()
        if (module := sys.modules.pop(name, None)) is None:  # the import that waits puts it back
            return importlib.util.find_spec(name)
        return importlib.util.spec_from_loader(name, _Loaded(module))


class _Loaded(importlib.abc.Loader):
    """Loads a module that is loaded already: as it is."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing but to put back what the import has changed."""
        with contextlib.suppress(AttributeError):  # some of torch's do not let it be changed
            module.__spec__ = self._spec


def defer(loaded: Callable[[], None]) -> None:
    """Load the compiler only when it is needed, and then call ``loaded``; nothing, if this process has it already."""
    if NAME not in sys.modules:
        sys.modules[NAME] = torch._dynamo = _StandIn(loaded)
        sys.meta_path.insert(0, _Within())


def is_deferred() -> bool:
    """Whether the compiler is still to be loaded."""
    return isinstance(sys.modules.get(NAME), _StandIn)


def load() -> ModuleType:
    """The compiler itself."""
    stand_in = sys.modules.get(NAME)
    if not isinstance(stand_in, _StandIn):
        return importlib.import_module(NAME)
    profiler = sys.getprofile()
    sys.setprofile(None)  # nothing in there is the program's doing
    del sys.modules[NAME]
    vars(torch).pop("_dynamo", None)
    try:
        compiler = importlib.import_module(NAME)
    finally:
        sys.setprofile(profiler)
    for function in stand_in.marked:  # from the next call on they are what the real one makes of them
        vars(function).pop("__dynamo_disable", None)
    stand_in.loaded()
    return compiler
