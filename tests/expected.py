"""What the quick suite of attacks is expected to give: ``python tests/expected.py results/attacks.json`` writes it.

A cell is a verdict with the step that caught the attack, or ``by chance`` where the sample decides.
"""

import json
import sys
from pathlib import Path

FILE = Path(__file__).parent / "vectors" / "attacks-quick.json"
CHANCE = "by chance"


def expectations(outcome):
    """Attack -> policy -> what became of it, of an outcome as plain JSON."""
    found = {}
    for cell in outcome["results"]:
        detection = cell["detection"]
        text = "does not apply" if cell["verdict"] is None else cell["verdict"]
        if cell["step"] is not None:
            text += f" {cell['step']}"
        if detection is not None and 0 < detection["predicted"] < 1:
            text = CHANCE
        found.setdefault(cell["attack"], {})[cell["policy"]] = text
    return found


if __name__ == "__main__":
    made = expectations(json.loads(Path(sys.argv[1]).read_text()))
    FILE.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(made)} attacks")
