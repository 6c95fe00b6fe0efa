"""The dependency rules of the package, as a test: two worlds, and the verbs that join them."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "pol"

GROUND = {
    *("errors", "digest", "merkle", "canonical", "seeds", "order"),
    *("declaration", "profile", "statetree", "interval", "messages", "version"),
    *("distributions", "laws"),
    *("distance", "values"),
    *("container", "layout", "packing"),
    "traces",
}
EVERYTHING = {""}
NAMING = {"replay.recipe", "replay.sources"}  # what a recipe is called and consists of: free of torch
# Layer -> what it may import besides itself and the ground: a layer, or one module or name of it.
MAY_IMPORT = {
    **{name: set() for name in GROUND},
    "proof": set(),
    "replay": set(),
    "store": set(),
    "checkpoint": {"store"},
    "exchange": {"store"},
    "keys": {"proof.envelope"},
    "executors": set(),
    "auditor": {"executors", *NAMING},
    "unfinished": {"proof", "store", "keys"},
    "prover": {"proof", "executors", "store", "keys", "unfinished", "release", *NAMING},
    # It measures errors as the verifier limits them, with the same function.
    "calibrator": {
        "proof",
        "executors",
        "store",
        "keys",
        "checkpoint",
        "prover",
        "auditor",
        "verifier.carrying",
        "verifier.reproduction",
        "verifier.tolerance",
        *NAMING,
    },
    "doctor": {"executors", "prover", *NAMING},
    # It makes a proof of a few steps, and has it read by the verifier itself.
    "planner": {
        *("proof", "executors", "store", "keys", "unfinished", "prover", "auditor", "checkpoint", "verifier"),
        *NAMING,
    },
    "policies": {"proof", "keys"},
    "release": {"checkpoint", "proof", "store"},
    "responder": {"proof", "store", "checkpoint", "exchange", "auditor", "replay.recipe"},
    "verifier": {"proof", "store", "keys", "checkpoint", "exchange", "auditor", "release", "replay.recipe"},
    "recipes": {"replay.recipe", "Recipe"},
    # A forger has read the verifier's code, and can run what of it needs no secret.
    "attacks": {
        *("proof", "replay", "store", "keys", "executors", "prover", "recipes"),
        *(f"verifier.{name}" for name in ("authenticate", "case", "eight", "paper_audit", "screening", "shape")),
        "verifier.tolerance",
    },
    "render": {"proof", "doctor.diagnosis", "bench.result"},
    "bench": {
        "attacks",
        "auditor",
        "calibrator",
        "checkpoint",
        "executors",
        "keys",
        "policies",
        "proof",
        "prover",
        "store",
        "verifier",
    },
    "demo": {
        "prover",
        "verifier",
        "auditor",
        "executors",
        "attacks",
        "recipes",
        "proof",
        "store",
        "keys",
        "release",
        "render",
        "policies",
    },
    "cli": EVERYTHING,
    "__init__": EVERYTHING,  # but lazily
    "__main__": {"cli"},
}
MAY_USE_TORCH = {"replay", "recipes", "attacks", "integrations"}
NEEDS_TORCH = {"torch", "torchvision", "transformers", "lightning", "accelerate", "safetensors.torch"}
# Of the layers that may not use torch, all but the demo and the bench, which need recipes and attacks.
WITHOUT_TORCH = set(MAY_IMPORT) - MAY_USE_TORCH - {"demo", "bench", "__main__"}
FREE_OF_TORCH = {"pol.replay.recipe", "pol.replay.sources"}  # although its layer may use it


def read_modules(src):
    """Name -> syntax tree of every module of the package at ``src``."""
    modules = {}
    for path in sorted(src.rglob("*.py")):
        parts = path.relative_to(src.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return modules


def layer_of(module):
    return module.split(".")[1] if "." in module else "__init__"


def within(name, prefixes):
    return any(prefix == "" or name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def imported_names(nodes):
    """Full names that these nodes import; a literal ``import_module`` and attributes of ``pol`` count too."""
    nodes = list(nodes)
    aliases = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "pol":
                    aliases.add(alias.asname or "pol")
                else:
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield f"pol.{node.attr}"


def run_at_import(node):
    """The nodes that run when the module is imported: none in functions or under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from (inner for other in child.orelse for inner in (other, *run_at_import(other)))
            continue
        yield child
        yield from run_at_import(child)


def module_violations(module, tree):
    """What one module imports and may not."""
    layer = layer_of(module)
    if layer not in MAY_IMPORT:
        return [f"{module}: no rule for the layer {layer!r}: add it to MAY_IMPORT"]
    nodes = list(ast.walk(tree))
    found = [
        f"{module}: relative import on line {node.lineno}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    names = sorted(set(imported_names(nodes)))
    allowed = MAY_IMPORT[layer] | GROUND | {layer}
    for name in names:
        if name.startswith("pol.") and not within(name.removeprefix("pol."), allowed):
            found.append(f"{module}: imports {name}, not allowed in the layer {layer!r}")
        if within(name, NEEDS_TORCH) and (layer not in MAY_USE_TORCH or module in FREE_OF_TORCH):
            found.append(f"{module}: imports {name}, so torch")
    if module == "pol":
        for name in sorted(set(imported_names(run_at_import(tree)))):
            if name.startswith("pol.") and not within(name.removeprefix("pol."), GROUND):
                found.append(f"pol: imports {name} at once, not lazily")
    return found


def circle(modules):
    """Modules of an import circle, each imported by the next, or an empty list."""
    graph = {}
    for module, tree in modules.items():
        graph[module] = set()
        for name in imported_names(run_at_import(tree)):
            while name.startswith("pol.") and name not in modules:
                name = name.rpartition(".")[0]
            if name in modules and name != "pol" and name != module:
                graph[module].add(name)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def violations(src):
    """Everything in the package at ``src`` that breaks a rule, one sentence each."""
    modules = read_modules(src)
    if not modules:
        return [f"no modules under {src}"]
    found = [line for module, tree in modules.items() for line in module_violations(module, tree)]
    if names := circle(modules):
        found.append("import circle: " + " -> ".join(names))
    return found


IMPORT_ALL = """
import importlib, json, sys, traceback
sys.path.insert(0, sys.argv[1])
sys.modules["torch"] = None
failed = {}
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""


def torch_free_modules(src):
    """Names of the modules that must be importable on a machine without torch."""
    names = [name for name in read_modules(src) if layer_of(name) in WITHOUT_TORCH or name in FREE_OF_TORCH]
    if not names:
        raise ValueError(f"no modules under {src}")
    return names


def import_failures(src):
    """Module -> error, for the modules that must not need torch but fail to be imported without it."""
    command = [sys.executable, "-c", IMPORT_ALL, str(src.parent), *torch_free_modules(src)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


def plant(tmp_path, files):
    """A package ``pol`` of these files, an empty ``__init__`` in each folder."""
    src = tmp_path / "pol"
    src.mkdir()
    for name, text in files.items():
        path = src / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in {src, *(path.parent for path in src.rglob("*.py"))}:
        (folder / "__init__.py").touch()
    return src


MODULES = read_modules(SRC)


def test_there_are_modules():
    assert "pol.merkle" in MODULES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_its_layer_may(module):
    assert module_violations(module, MODULES[module]) == []


def test_no_import_circle():
    assert circle(MODULES) == []


def test_deciding_needs_no_torch():
    assert import_failures(SRC) == {}


HONEST = {
    "digest.py": "import hashlib\nfrom pol.errors import FormatError\nfrom pol import version\n",
    "errors.py": "",
    "version.py": "",
    "proof/spec.py": "from pol.digest import raw\nfrom pol.proof import genesis\n",
    "proof/genesis.py": "import json\n",
    "replay/engine.py": "import torch\nfrom safetensors.torch import load\nfrom pol import messages\n",
    "replay/recipe.py": "class Recipe: pass\n",
    "messages.py": "from pol import digest\n",
    "executors/local.py": "from pol.messages import Order\n",
    "auditor.py": "import pol.messages\nfrom pol.executors import local\n",
    "prover.py": "from pol import keys, store\nfrom pol import messages\n",
    "store.py": "",
    "keys.py": "",
    "verifier/steps.py": "from pol.proof.spec import Spec\nfrom pol import keys, store\n",
    "recipes/digits.py": "import pol\nimport torch\nclass Digits(pol.Recipe): pass\n",
    "recipes/text.py": "from pol.replay.recipe import Recipe\nfrom pol.recipes import digits\n",
    "attacks/splice.py": "import torch\nfrom pol.prover import record\nfrom pol.replay import engine\n",
    "cli/verify.py": "from pol.verifier import steps\nfrom pol import auditor\nimport pol\n",
    "__main__.py": "from pol.cli import main\n",
    "__init__.py": (
        "import importlib\nfrom typing import TYPE_CHECKING\nfrom pol.version import __version__\n"
        "if TYPE_CHECKING:\n    from pol.prover import record as record\n"
        "def __getattr__(name):\n    from pol.verifier import steps\n"
        "    return importlib.import_module('pol.' + name)\n"
    ),
}


def test_honest_package_passes(tmp_path):
    assert violations(plant(tmp_path, HONEST)) == []


def test_no_modules_fail(tmp_path):
    empty = tmp_path / "pol"
    empty.mkdir()
    assert violations(empty) == [f"no modules under {empty}"]
    with pytest.raises(ValueError, match="no modules"):
        import_failures(empty)


FORBIDDEN = [
    # ground
    ("digest.py", "from pol import proof", "pol.digest: imports pol.proof,"),
    ("errors.py", "import numpy\nimport torch", "pol.errors: imports torch, so torch"),
    ("statetree.py", "from pol.replay.state import State", "imports pol.replay.state.State,"),
    # the two worlds, the store and the keys
    ("proof/spec.py", "from pol.replay import state", "pol.proof.spec: imports pol.replay.state,"),
    ("proof/spec.py", "from pol.store import Store", "imports pol.store.Store,"),
    ("proof/spec.py", "def f():\n    import torch", "pol.proof.spec: imports torch, so torch"),
    ("proof/spec.py", "from safetensors.torch import load", "imports safetensors.torch.load, so torch"),
    ("proof/spec.py", "import importlib\nimportlib.import_module('torch.nn')", "imports torch.nn, so torch"),
    ("proof/spec.py", "import pol\nx = pol.prover", "pol.proof.spec: imports pol.prover,"),
    ("proof/spec.py", "import pol as p\nx = p.prover", "pol.proof.spec: imports pol.prover,"),
    ("proof/spec.py", "from pol import Recipe", "pol.proof.spec: imports pol.Recipe,"),
    ("replay/engine.py", "from pol.proof.log import Log", "imports pol.proof.log.Log,"),
    ("replay/engine.py", "from pol.store import Store", "imports pol.store.Store,"),
    ("messages.py", "import torch", "pol.messages: imports torch, so torch"),
    ("replay/sources.py", "import torch", "pol.replay.sources: imports torch, so torch"),
    ("store.py", "from pol.proof import spec", "pol.store: imports pol.proof.spec,"),
    ("keys.py", "from pol import store", "pol.keys: imports pol.store,"),
    # the verbs
    ("executors/local.py", "from pol.replay.engine import advance", "imports pol.replay.engine.advance,"),
    ("executors/local.py", "from pol import replay", "pol.executors.local: imports pol.replay,"),
    ("executors/local.py", "from pol.proof import spec", "imports pol.proof.spec,"),
    ("auditor.py", "from pol.replay import engine", "pol.auditor: imports pol.replay.engine,"),
    ("auditor.py", "from pol.keys import load", "pol.auditor: imports pol.keys.load,"),
    ("auditor.py", "import torch", "pol.auditor: imports torch, so torch"),
    ("prover.py", "import pol.replay.engine", "pol.prover: imports pol.replay.engine,"),
    ("prover.py", "from pol.verifier import verify", "pol.prover: imports pol.verifier.verify,"),
    ("verifier/audit.py", "from pol.replay.engine import advance", "imports pol.replay.engine.advance,"),
    ("verifier/audit.py", "from pol.executors import local", "imports pol.executors.local,"),
    ("verifier/audit.py", "import torch", "pol.verifier.audit: imports torch, so torch"),
    # red team, examples and faces
    ("recipes/digits.py", "from pol.replay.engine import advance", "imports pol.replay.engine.advance,"),
    ("recipes/digits.py", "import pol\npol.record()", "pol.recipes.digits: imports pol.record,"),
    ("recipes/digits.py", "from pol.proof import spec", "imports pol.proof.spec,"),
    ("attacks/splice.py", "from pol.verifier import verify", "imports pol.verifier.verify,"),
    ("attacks/splice.py", "from pol.auditor import audit", "imports pol.auditor.audit,"),
    ("render/html.py", "from pol.store import Store", "imports pol.store.Store,"),
    ("demo.py", "from pol.replay import engine", "pol.demo: imports pol.replay.engine,"),
    ("demo.py", "from pol.cli import main", "pol.demo: imports pol.cli.main,"),
    ("demo.py", "import torch", "pol.demo: imports torch, so torch"),
    ("cli/verify.py", "import torch", "pol.cli.verify: imports torch, so torch"),
    ("__main__.py", "from pol.prover import record", "pol.__main__: imports pol.prover.record,"),
    ("__init__.py", "from pol.prover import record", "pol: imports pol.prover.record at once, not lazily"),
    ("__init__.py", "try:\n    import pol.proof\nexcept ImportError: pass", "imports pol.proof at once"),
    ("__init__.py", "def f():\n    import torch", "pol: imports torch, so torch"),
    # everywhere
    ("mystery.py", "", "pol.mystery: no rule for the layer 'mystery'"),
    ("proof/spec.py", "from . import genesis", "pol.proof.spec: relative import on line 1"),
    ("proof/spec.py", "from ..errors import FormatError", "pol.proof.spec: relative import on line 1"),
]


@pytest.mark.parametrize(
    ("name", "text", "expected"), FORBIDDEN, ids=[f"{name}:{text[-30:]}" for name, text, _ in FORBIDDEN]
)
def test_forbidden_import_is_reported(tmp_path, name, text, expected):
    found = violations(plant(tmp_path, {**HONEST, name: text}))
    assert [line for line in found if expected in line], found


CIRCLES = {
    "two modules": {"proof/a.py": "from pol.proof import b", "proof/b.py": "from pol.proof.a import x"},
    "three modules": {
        "proof/a.py": "import pol.proof.b",
        "proof/b.py": "from pol.proof.c import x",
        "proof/c.py": "try:\n    from pol.proof import a\nexcept ImportError:\n    pass",
    },
    "through a package": {
        "proof/__init__.py": "from pol.proof.a import x",
        "proof/a.py": "from pol.proof import x",
    },
}


@pytest.mark.parametrize("files", CIRCLES.values(), ids=CIRCLES)
def test_import_circle_is_reported(tmp_path, files):
    found = violations(plant(tmp_path, {**HONEST, **files}))
    assert [line for line in found if line.startswith("import circle: ") and "pol.proof.a" in line], found


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    from pol.proof import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pol.proof.b",
    ],
    ids=["in a function", "for types"],
)
def test_late_import_is_no_circle(tmp_path, text):
    files = {"proof/a.py": text, "proof/b.py": "import pol.proof.a"}
    assert violations(plant(tmp_path, {**HONEST, **files})) == []


@pytest.mark.parametrize(
    "name", ["digest.py", "proof/spec.py", "verifier/steps.py", "store.py", "keys.py", "replay/sources.py"]
)
def test_hidden_torch_is_reported(tmp_path, name):
    hidden = "import importlib\nimportlib.import_module('to' + 'rch')"
    src = plant(tmp_path, {"errors.py": "", name: hidden})
    module = "pol." + name.removesuffix(".py").replace("/", ".")
    assert set(import_failures(src)) == {module}


def test_hidden_torch_of_the_package_is_reported(tmp_path):
    src = plant(tmp_path, {"errors.py": "", "__init__.py": "__import__('to' + 'rch')"})
    assert set(import_failures(src)) == {"pol", "pol.errors"}
