"""The base class of a training program, and how one is named, found and configured."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from pol import canonical
from pol.errors import UsageError


class Recipe:
    """The code of a training: data, model, optimizer, loss, and one step.

    Constructor arguments are the configuration: plain values, part of the signed spec. A subclass sets
    ``num_epochs`` and ``batch_size`` and overrides ``data``, ``build`` and ``step``; ``train`` only if its loop
    is not the usual one.
    """

    num_epochs: int = 1
    batch_size: int = 32
    configuration: dict[str, Any]
    """Constructor arguments with their defaults, as given; filled in when the recipe is made."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Recipe:
        """Note the constructor arguments."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except TypeError as error:
            raise UsageError(f"{cls.__name__}: {error}") from None
        bound.apply_defaults()
        named = dict(list(bound.arguments.items())[1:])
        if cls.__init__ is object.__init__:
            named = {}
        self.configuration = named
        return self

    def data(self) -> Any:
        """The dataset: ``len`` and integer indexing, deterministic.

        An item is a dict or tuple of arrays, bytes, str and numbers.
        """
        raise NotImplementedError(f"{type(self).__name__} must override data()")

    def transform(self, item: Any, rng: Any) -> Any:
        """The augmentation of one item; ``rng`` is a numpy Generator for this sample in this epoch."""
        return item

    def build(self) -> dict[str, Any]:
        """The parts: ``{"model": ..., "optimizer": ..., "scheduler": ...}``, weights drawn on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must override build()")

    def step(self, parts: Any, batch: Any) -> Any:
        """One optimizer update on one batch; returns the loss."""
        raise NotImplementedError(f"{type(self).__name__} must override step()")

    def train(self, run: Any) -> None:
        """The training loop; override it for one's own."""
        parts = run.attach(**self.build())
        data = self.data()
        transform = None if type(self).transform is Recipe.transform else self.transform
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(data, transform, size=self.batch_size):
                run.commit(loss=self.step(parts, batch))


def split_reference(reference: str) -> tuple[str, str]:
    """(file or module, class name) of ``path/to/file.py:Name`` or ``package.module:Name``.

    Raises:
        UsageError: the reference has another form, or its file is not there.
    """
    where, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier() or not where:
        raise UsageError(f"{reference!r} does not name a recipe: write path/to/file.py:Name or package.module:Name")
    if where.endswith(".py") and not Path(where).is_file():
        raise UsageError(f"no such file: {where} (from the recipe {reference!r})")
    return where, name


def load(reference: str) -> type[Recipe]:
    """Import the recipe class that ``reference`` names. Runs its code.

    Raises:
        UsageError: there is no such module, or no such class in it.
    """
    where, name = split_reference(reference)
    if where.endswith(".py"):
        path = Path(where).resolve()
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))  # as if the file were run as a script
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not (where + ".").startswith(error.name + "."):
                raise
            raise UsageError(f"no module named {error.name!r} (from the recipe {reference!r})") from None
    recipe = getattr(module, name, None)
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise UsageError(f"{where} has no recipe {name}: expected a class that derives from pol.Recipe")
    return recipe


def referred(recipe: Recipe | str, settings: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The reference of a recipe, and its constructor arguments as tagged values.

    Raises:
        UsageError: no fresh process can import it, or it has its arguments already.
    """
    if isinstance(recipe, Recipe):
        if settings is not None:
            raise UsageError("settings go with a recipe given by reference; this recipe already has its arguments")
        reference, settings = reference_of(recipe), recipe.configuration
    else:
        reference = recipe
    split_reference(reference)
    return reference, {name: canonical.tag(value, name) for name, value in (settings or {}).items()}


def reference_of(recipe: Recipe) -> str:
    """The reference under which a fresh process can import the class of ``recipe``.

    Raises:
        UsageError: the class is not at the top level of a file.
    """
    cls = type(recipe)
    file = (
        inspect.getsourcefile(cls)
        if cls.__module__ != "__main__" or hasattr(sys.modules["__main__"], "__file__")
        else None
    )
    if file is None or "." in cls.__qualname__:
        raise UsageError(
            f"{cls.__qualname__} must be a top-level class of a file, so that another process can import it"
        )
    module = cls.__module__
    if module == "__main__" or importlib.util.find_spec(module.partition(".")[0]) is None:
        return f"{file}:{cls.__name__}"
    if "." not in module and not _is_installed(file):
        return f"{file}:{cls.__name__}"
    return f"{module}:{cls.__name__}"


def _is_installed(file: str) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in Path(file).parts)


def make(recipe: type[Recipe], configuration: dict[str, Any]) -> Recipe:
    """A recipe from a tagged configuration."""
    return recipe(**{key: canonical.untag(value, key) for key, value in configuration.items()})
