"""A program as one process enters it, as often as it likes."""

from __future__ import annotations

import sys
from pathlib import Path

from pol import canonical
from pol.declaration import External
from pol.messages import Program
from pol.replay import compiling, sources
from pol.replay import recipe as recipes
from pol.replay.opened import Dataset
from pol.replay.openings import FileWatch
from pol.replay.randomness import Streams
from pol.replay.recipe import Recipe


class Entry:
    """Makes the recipe of a program, each time as in a fresh process.

    Generators carry the init stream before the recipe is imported, which happens once, and again before it is made.

    Args:
        program: What is entered.
        dataset: Where the dataset is kept from one entry to the next; None: each opens its own.
        redrawn: Another seed for what the steps draw.
    """

    def __init__(self, program: Program, dataset: Dataset | None = None, redrawn: bytes | None = None) -> None:
        self.program = program
        self._dataset = dataset
        self.streams = Streams(bytes.fromhex(program.seed), redrawn)
        self.sources = sources.local_sources(program.reference)
        for name in self.sources:  # of an earlier job in this process; our own modules draw nothing at import
            if not name.startswith("pol."):
                sys.modules.pop(name, None)
        self.order = None if program.order is None else Path(program.order)
        self._imported = set(sys.modules)
        self._watch = FileWatch()
        self._recipe: type[Recipe] | None = None

    def make(self) -> Recipe:
        """The recipe, newly made."""
        compiling.forget()
        if self._recipe is None:
            self._begin()
            self._watch.start()
            self._recipe = recipes.load(self.program.reference)
            self._read_by_import = self._watch.seen()
        else:
            self._watch.start(self._read_by_import)
        self._begin()  # anew: some libraries draw when they are first imported
        made = recipes.make(self._recipe, self.program.configuration)
        self.configuration = {key: canonical.tag(value, key) for key, value in made.configuration.items()}
        if self._dataset is not None:
            self._dataset.lend(made)
        return made

    def _begin(self) -> None:
        """Set the generators to where a program begins."""
        if self.program.declared_seed is None:
            self.streams.init()
        else:
            self.streams.declared(self.program.declared_seed)

    def external(self) -> list[External]:
        """The files that import and build have read."""
        return self._watch.stop()

    def undeclared(self) -> list[str]:
        """Local modules that were imported in a way that the sources do not show."""
        return sources.undeclared_modules(self.program.reference, self.sources, self._imported)
