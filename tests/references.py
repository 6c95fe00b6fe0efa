"""Names of the recipes that most tests train."""

from pathlib import Path

RECIPE = f"{Path(__file__).parent / 'recipes' / 'toy.py'}:Toy"
PLAIN = f"{Path(__file__).parent / 'recipes' / 'plain.py'}:Plain"
LONGER = f"{Path(__file__).parent / 'recipes' / 'longer.py'}:Longer"
OPENING = Path(__file__).parent / "recipes" / "opening.py"
