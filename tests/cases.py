"""Tables about attacks, collected from the modules ``cases_*.py``: what is expected of the attacks of one family.

Such a module may have ``CASES`` (rule exact: the layers of ``test_forgeries``), ``TOLERANCE`` (as ``EXPECTED`` in
``test_forgeries_tolerance``), ``PAPER`` (as in ``test_paper``), and ``RECIPES`` (attacks that need another recipe).
"""

import importlib
from pathlib import Path

MODULES = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("cases_*.py"))]


def collected(table):
    """All entries of one table; no attack has two."""
    found = {}
    for module in MODULES:
        entries = getattr(module, table, {})
        assert not found.keys() & entries.keys()
        found |= entries
    return found
