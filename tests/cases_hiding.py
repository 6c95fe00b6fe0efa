"""What is expected of the attacks of ``pol.attacks.hiding`` and ``pol.attacks.masks``."""

from pathlib import Path

RECIPES = {"lossy-hash": f"{Path(__file__).parent / 'recipes' / 'pictures.py'}:Pictures"}
