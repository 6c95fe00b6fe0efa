"""The recipe digest: every local module that the recipe's code imports is in it, and nothing comes in past it."""

import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pol.digest import sha256
from pol.errors import UsageError
from pol.messages import Built, Program
from pol.profile import Profile
from pol.proof.genesis import recipe_digest
from pol.proof.report import Verdict
from pol.replay import recipe as recipes
from pol.replay import sources
from pol.replay.entry import Entry
from pol.replay.openings import FileWatch
from pol.replay.sources import local_sources, undeclared_modules
from zoo.tools import check, train

RECIPE = """
import numpy as np
import torch
from torch import nn
{imports}
from pol import Recipe

class R(Recipe):
    batch_size = 4
    def data(self):
        return [{{"x": np.full(2, i, dtype="float32")}} for i in range(8)]
    def build(self):
        model = nn.Linear(2, 1)
        {build}
        return {{"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.01)}}
    def step(self, parts, batch):
        loss = parts.model(batch["x"]).square().mean()
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss
"""


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Writes files; modules that a test imports from there are forgotten after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(**files):
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/").replace("/init", "/__init__") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    yield write
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def recipe(imports="", build="pass"):
    return RECIPE.format(imports=imports, build=build)


# --- what is found


@pytest.mark.parametrize(
    ("statement", "modules"),
    [
        ("import helper", {"helper"}),
        ("import helper as h, other", {"helper", "other"}),
        ("from helper import x", {"helper"}),
        ("from helper import *", {"helper"}),
        ("import package", {"package"}),
        ("import package.inner", {"package", "package.inner"}),
        ("from package import inner", {"package", "package.inner"}),
        ("from package import inner as i", {"package", "package.inner"}),
        ("from package.inner import x", {"package", "package.inner"}),
        ("import package.deep.deepest", {"package", "package.deep", "package.deep.deepest"}),
        ("from package import relative", {"package", "package.relative", "package.inner", "package.deep", "helper"}),
        ("from folder import plain", {"folder.plain"}),
        ("import folder.plain", {"folder.plain"}),
        ("import circle_a", {"circle_a", "circle_b"}),
        ("def f():\n    import helper", {"helper"}),
        ("class C:\n    def f(self):\n        from helper import x", {"helper"}),
        ("if False:\n    import helper", {"helper"}),
        ("try:\n    import helper\nexcept ImportError:\n    import other", {"helper", "other"}),
        ("async def f():\n    with open('x'):\n        import helper", {"helper"}),
        ("f = lambda: __import__('helper')", set()),
        ("import numpy, os.path, torch.nn", set()),
        ("import nowhere", set()),
        ("'import helper'", set()),
    ],
)
def test_local_modules_are_found_wherever_they_are_imported(statement, modules, plant):
    folder = plant(
        recipe=statement, helper="x = 1", other="", package__init="", package__inner="x = 1", package__deep__init="",
        package__deep__deepest="", package__relative="from . import inner\nfrom .deep import x\nimport helper",
        folder__plain="", circle_a="import circle_b", circle_b="import circle_a", unused="",
    )  # fmt: skip
    found = local_sources(f"{folder}/recipe.py:R")
    assert set(found) == {"recipe", *modules}
    assert list(found) == sorted(found)
    for name, digest in found.items():
        path = folder / name.replace(".", "/")
        path = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        assert digest == sha256(path.read_bytes())


def test_a_package_is_covered_as_far_as_it_is_imported(plant, monkeypatch):
    folder = plant(
        pkg__init="from .common import x", pkg__common="x = 1", pkg__train="from .models import net\nimport pkg.late",
        pkg__models__init="", pkg__models__net="from ..common import x\nfrom . import other\nimport beside",
        pkg__models__other="", pkg__late="", pkg__unused="", beside="",
    )  # fmt: skip
    monkeypatch.syspath_prepend(folder)
    found = local_sources("pkg.train:R")
    inside = {"pkg", "pkg.common", "pkg.train", "pkg.models", "pkg.models.net", "pkg.models.other", "pkg.late"}
    assert set(found) == inside  # a module of another top-level package is not local to this one


def test_the_shipped_recipes_cover_their_own_package_only():
    assert set(local_sources("pol.recipes.digits:DigitsCNN")) == {"pol.recipes.digits"}


def test_the_digest_covers_names_and_contents():
    one = {"a": sha256(b"1"), "b": sha256(b"2")}
    others = [{"a": sha256(b"1")}, {"a": sha256(b"2"), "b": sha256(b"1")}, {"a": sha256(b"1"), "c": sha256(b"2")}, {}]
    assert len({recipe_digest(x) for x in [one, *others]}) == 5
    assert recipe_digest(dict(reversed(one.items()))) == recipe_digest(one)


@pytest.mark.parametrize(
    ("text", "message"),
    [("def f(:", "is not Python that can be read"), ("x = '\0'", "is not Python"), ("(" * 5000, "is not Python")],
)
def test_sources_that_do_not_parse_are_named(text, message, plant):
    folder = plant(recipe="import broken", broken=text)
    with pytest.raises(UsageError, match=rf"broken\.py {message}"):
        local_sources(f"{folder}/recipe.py:R")


def test_huge_sources_are_refused(plant, monkeypatch):
    monkeypatch.setattr(sources, "MAX_SOURCE", 100)
    folder = plant(recipe="#" * 101)
    with pytest.raises(UsageError, match="101 bytes is more than a source file may have"):
        local_sources(f"{folder}/recipe.py:R")


# --- what comes in past it


@pytest.mark.parametrize(
    "build",
    [
        "import importlib; importlib.import_module('hidden')",
        "__import__('hidden')",
        "__import__('hid' + 'den')",
        "exec('import hidden')",
    ],
)
def test_dynamic_imports_are_refused_when_recording(build, plant, tmp_path):
    folder = plant(recipe=recipe(build=build), hidden="x = 1")
    with pytest.raises(UsageError, match="imports the local module hidden in a way that its source does not show"):
        train(f"{folder}/recipe.py:R", tmp_path / "p")


def test_a_dynamic_import_that_is_shown_is_fine(plant, tmp_path):
    folder = plant(recipe=recipe("if False:\n    import hidden", "__import__('hidden')"), hidden="x = 1")
    train(f"{folder}/recipe.py:R", tmp_path / "p")
    assert check(tmp_path / "p", f"{folder}/recipe.py:R").verdict is Verdict.ACCEPT


def test_only_local_modules_count_as_undeclared(plant):
    folder = plant(recipe="", hidden="", shown="")
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    for name in ("hidden", "shown"):
        __import__(name)
    reference = f"{folder}/recipe.py:R"
    assert undeclared_modules(reference, {"shown": sha256(b"")}, before) == ["hidden"]
    assert undeclared_modules(reference, {"shown": sha256(b"")}, set(sys.modules)) == []


@pytest.mark.parametrize("changed", ["recipe", "helper", "package__inner"])
def test_a_verifier_with_another_source_is_told_which(changed, plant, tmp_path):
    files = {
        "recipe": recipe("import helper\nfrom package import inner"), "helper": "", "package__init": "",
        "package__inner": "",
    }  # fmt: skip
    reference = f"{plant(**files)}/recipe.py:R"
    train(reference, tmp_path / "p")
    assert check(tmp_path / "p", reference).verdict is Verdict.ACCEPT
    plant(**{changed: files[changed] + "\n# a comment is a change, too\n"})
    report = check(tmp_path / "p", reference)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert re.search(rf"module {re.escape(changed.replace('__', '.'))} .*differs", report.reason())


# --- a program is entered as in a fresh process


def test_randomness_at_import_is_part_of_the_run(plant, tmp_path):
    """A local module draws, and sets a seed, while it is imported: the same for every entry, derived for every run."""
    folder = plant(
        recipe=recipe("import helper", "model.weight.data += helper.NOISE"),
        helper="import torch, random\nNOISE = torch.randn(1, 2) + random.random()",
    )
    train(f"{folder}/recipe.py:R", tmp_path / "p")
    report = check(tmp_path / "p", f"{folder}/recipe.py:R")
    assert report.verdict is Verdict.ACCEPT, report.reason()


def entry(reference, seed=bytes(32)):
    return Entry(Program(reference=reference, configuration={}, seed=seed.hex(), profile=Profile(threads=1)))


def test_a_recipe_is_imported_once_and_entered_as_if_anew(plant):
    folder = plant(
        recipe=recipe("import random, helper\nDRAWN = [random.random(), helper.DRAWN]"),
        helper="import random\nDRAWN = random.random()\nLOADS = []",
    )
    one = entry(f"{folder}/recipe.py:R")
    made = [type(one.make()), random.random(), type(one.make()), random.random()]
    assert made[0] is made[2]
    assert made[1] == made[3]
    again = entry(f"{folder}/recipe.py:R")  # a later job of the same process imports anew
    assert type(again.make()) is not made[0]
    assert random.random() == made[1]
    assert sys.modules["recipe"].DRAWN == sys.modules[made[0].__module__].DRAWN
    other = entry(f"{folder}/recipe.py:R", b"\1" * 32)
    other.make()
    assert random.random() != made[1]


def test_an_edited_helper_is_the_one_that_is_used(plant):
    """As it is in a fresh process, where nothing was imported before."""
    folder = plant(recipe=recipe("import helper"), helper="VALUE = 1")
    entry(f"{folder}/recipe.py:R").make()
    plant(helper="VALUE = 22")
    entry(f"{folder}/recipe.py:R").make()
    assert sys.modules["helper"].VALUE == 22


# --- files that a build reads


def test_a_watch_sees_what_is_read_and_nothing_else(tmp_path):
    names = ["text.txt", "array.npy", "code.py", "library.so", "written.txt", "twice.bin", "linked.bin", "early.txt"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to(tmp_path / "linked.bin")
    watch = FileWatch()
    (tmp_path / "early.txt").read_bytes()
    watch.start()
    (tmp_path / "text.txt").read_text()
    with pytest.raises(ValueError, match=r"pickled|magic|allow_pickle"):
        np.load(tmp_path / "array.npy")
    (tmp_path / "code.py").read_bytes()
    with open(bytes(tmp_path / "library.so"), "rb"):
        pass
    for _ in range(2):
        (tmp_path / "twice.bin").read_bytes()
    (tmp_path / "link").read_bytes()
    (tmp_path / "written.txt").write_text("now")
    Path("/proc/self/status").read_text()
    Path(np.__file__).read_bytes()
    with pytest.raises(FileNotFoundError):
        (tmp_path / "missing").read_bytes()
    found = watch.stop()
    (tmp_path / "early.txt").read_bytes()
    expected = ["array.npy", "code.py", "library.so", "linked.bin", "text.txt", "twice.bin"]
    assert [external.name for external in found] == expected
    assert [external.digest for external in found] == [sha256(name.encode()) for name in expected]


def test_a_watch_passes_over_imported_code_and_remembers_an_import(plant):
    folder = plant(recipe=recipe("from pathlib import Path\nTEXT = Path(__file__).with_name('note.txt').read_text()"))
    (folder / "note.txt").write_text("read at import")
    one = entry(f"{folder}/recipe.py:R")
    for _ in range(3):
        one.make()
        assert [external.name for external in one.external()] == ["note.txt"]


# --- references


def test_a_recipe_object_is_found_again(plant):
    folder = plant(some_recipe=recipe())
    cls = recipes.load(f"{folder}/some_recipe.py:R")
    assert recipes.reference_of(cls()) == f"{folder}/some_recipe.py:R"
    digits = recipes.load("pol.recipes.digits:DigitsCNN")
    assert recipes.reference_of(digits()) == "pol.recipes.digits:DigitsCNN"
    nested = type("Nested", (cls,), {"__qualname__": "f.<locals>.Nested"})
    with pytest.raises(UsageError, match="must be a top-level class of a file"):
        recipes.reference_of(nested())


def test_a_recipe_object_can_be_recorded(plant, tmp_path):
    folder = plant(some_recipe=recipe())
    instance = recipes.load(f"{folder}/some_recipe.py:R")()
    train(instance, tmp_path / "p")
    assert check(tmp_path / "p", instance).verdict is Verdict.ACCEPT
    with pytest.raises(UsageError, match="settings go with a recipe given by reference"):
        train(instance, tmp_path / "q", settings={})


def test_the_program_of_a_job_is_built(plant):
    """What the worker is asked, without any directory: a dry build of a recipe file."""
    from pol.messages import Build
    from pol.replay.inprocess import InProcess

    folder = plant(recipe=recipe())
    program = entry(f"{folder}/recipe.py:R").program
    (built,) = InProcess().run(Build(program=program))
    assert isinstance(built, Built)
    assert built.undeclared == []
    assert [e.key for e in built.declaration.entries] == ["parameter/model.bias", "parameter/model.weight"]
