"""What the quick suite of attacks is expected to give: ``python tests/expected.py results/attacks.json`` writes it.

A cell is a verdict with the step that caught the attack, or ``by chance`` where the sample decides. Several are joined
by `` or `` by hand, where an attack is near a limit of the verification of 2021, or where it is a matter of the run
whether the one forged interval is among the largest moves.
"""

import json
import sys
from pathlib import Path

FILE = Path(__file__).parent / "vectors" / "attacks-quick.json"
CHANCE = "by chance"


def expectations(outcome):
    """Attack -> policy -> what became of it, of an outcome as plain JSON; those on the training beside it, too."""
    found = {}
    if outcome["beside"] is not None:
        trained = outcome["beside"]["recipe"].rpartition(":")[2]
        found = {f"{attack} on {trained}": cells for attack, cells in expectations(outcome["beside"]).items()}
    for cell in outcome["results"]:
        detection = cell["detection"]
        text = "does not apply" if cell["verdict"] is None else cell["verdict"]
        if cell["step"] is not None:
            text += f" {cell['step']}"
        if detection is not None and 0 < detection["predicted"] < 1:
            text = CHANCE
        found.setdefault(cell["attack"], {})[cell["policy"]] = text
    return found


def surprises(found, expected):
    """What of an outcome is not as expected: (attack, policy, found, expected).

    The test of first weights of 2021 rejects one fresh start in a hundred, so there a step 5 is no surprise.
    """
    assert found.keys() == expected.keys()
    return [
        (attack, policy, word, expected[attack].get(policy))
        for attack, cells in found.items()
        for policy, word in cells.items()
        if word not in expected[attack].get(policy, "").split(" or ") and (policy, word) != ("paper-2021", "REJECT 5")
    ]


if __name__ == "__main__":
    made = expectations(json.loads(Path(sys.argv[1]).read_text()))
    FILE.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(made)} attacks")
