"""README and docs: what they tell to type works, what they point to is there, what they list is complete.

Blocks by their info string: ``sh`` is run, ``python`` is run, or written to the file that its first line names;
``text`` after one of these is its output, a line of which may be cut off or hold ``…``; ``console`` is shown only;
``toml`` is a policy and ``diff`` a change to a script, which other tests check.
Blocks of one page run in order in one folder.
"""

import ast
import itertools
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

import test_forgeries
import test_forgeries_tolerance
import test_layers
from pol import container, policies, store
from pol.attacks.registry import REGISTRY
from pol.proof import attestation, genesis, log
from pol.proof.policy import Policy
from pol.verifier import authenticate, shape

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "pol"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = {"spirals.py": "Spirals", "own_loop.py": "OwnLoop"}
INFO = {"sh", "python", "text", "console", "toml", "diff"}


@dataclass(frozen=True)
class Block:
    """A fenced block and the line of its page on which it begins."""

    info: str
    text: str
    line: int

    @property
    def end(self):
        """The line on which it ends."""
        return self.line + self.text.count("\n") + 1

    @property
    def file(self):
        """The file that a Python block is the content of; None if it is to be run."""
        match = re.match(r"# ([\w/]+\.py)\n", self.text) if self.info == "python" else None
        return match[1] if match else None


def blocks(page):
    found, begin, lines = [], None, page.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if begin is None:
                begin = number
            else:
                text = "".join(f"{inner}\n" for inner in lines[begin + 1 : number])
                found.append(Block(lines[begin][3:], text, begin + 1))
                begin = None
    assert begin is None, f"{page}: a block has no end"
    return found


def ids(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


TOLD = [page for page in PAGES if any(block.info in ("sh", "python") for block in blocks(page))]


def test_there_is_something_to_check():
    assert {"README.md", "docs/recipes.md", "docs/threat-model.md"} <= set(ids(TOLD))


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_blocks_are_of_known_kinds(page):
    assert {block.info for block in blocks(page)} <= INFO
    for block in blocks(page):
        if block.info == "python":
            ast.parse(block.text)
        if block.info == "console":  # exempt from running: so only what installs, or measures for minutes
            allowed = r"make \w+( DATA=\S+)?|pol bench attacks[^#]*|\.venv/bin/python -m benchmarks[^#]*"
            allowed = rf"((\$ )?({allowed})( +#.*)?)?$"
            assert all(re.match(allowed, line) for line in block.text.splitlines()), block.text


def environment(home):
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(home), "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1"}


def run(block, folder, home):
    command = (
        ["bash", "-euo", "pipefail", "-c", block.text] if block.info == "sh" else [sys.executable, "-c", block.text]
    )
    return subprocess.run(command, cwd=folder, env=environment(home), capture_output=True, text=True, timeout=240)


def shown(line):
    """A pattern for a line of output."""
    return re.escape(line.strip()).replace("…", ".*")


@pytest.mark.slow
@pytest.mark.parametrize("page", TOLD, ids=ids(TOLD))
def test_commands_and_code_work(page, tmp_path):
    folder, home, output, end = tmp_path / "work", tmp_path / "home", "", 0
    folder.mkdir()
    home.mkdir()
    ran = compared = 0
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.file:
            (folder / block.file).write_text(block.text)
        elif block.info in ("sh", "python"):
            done = run(block, folder, home)
            assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
            output, end, ran = done.stdout, block.end, ran + 1
        elif block.info == "text" and block.line <= end + 2:  # nothing but an empty line is between
            for line in block.text.splitlines():
                assert re.search(shown(line), output), f"{where}: {line!r} is not in\n{output}"
                compared += 1
    assert ran
    assert compared or page.name == "recipes.md"


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES)
def test_example_is_recorded_and_accepted(file, tmp_path):
    recipe = f"{ROOT / 'examples' / file}:{EXAMPLES[file]}"
    text = f"pol record {recipe} --out proof --every 7 --keep 3 --threads 1\npol verify proof --recipe {recipe}"
    done = run(Block("sh", text, 0), tmp_path, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ACCEPT" in done.stdout


def test_every_example_is_tested():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


def test_readme_shows_the_example():
    (block,) = (block for block in blocks(ROOT / "README.md") if block.file == "spirals.py")
    assert block.text == "# spirals.py\n" + (ROOT / "examples" / "spirals.py").read_text()


# -- links --------------------------------------------------------------------------------------------------------


def anchors(page):
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_page_can_be_reached():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            found = (page.parent / target).resolve()
            inside = sorted(found.glob("*.md")) if found.is_dir() and "docs" in found.parts else [found]
            waiting += [path for path in inside if path.suffix == ".md" and path.exists() and path not in reached]
    assert reached == set(PAGES)


def test_decisions_are_numbered():
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").iterdir())
    for number, name in enumerate(names, start=1):
        text = (ROOT / "docs" / "decisions" / name).read_text()
        assert name.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number:04d} ")
        for part in ("**Context.**", "**Choice.**", "**Costs.**"):
            assert part in text, name


# -- lists --------------------------------------------------------------------------------------------------------


def tree(page, title):
    """Path -> remark, of the indented list under a title; a folder ends with a slash."""
    text = page.read_text()
    block = next(b for b in blocks(page) if b.info == "text" and b.line > text[: text.index(title)].count("\n"))
    found, folders = {}, []
    for line in block.text.splitlines():
        indent, name, remark = re.fullmatch(r"( *)(\S+)(?: +(.+))?", line).groups()
        folders = folders[: len(indent) // 2]
        found["".join([*folders, name])] = remark
        if name.endswith("/"):
            folders.append(name)
    return found


def entries(deep):
    paths = [p for p in (SRC.rglob("*") if deep else SRC.iterdir()) if "__pycache__" not in p.parts]
    named = {p.relative_to(SRC).as_posix() + "/" * p.is_dir() for p in paths if p.is_dir() or p.suffix == ".py"}
    return {"src/pol/", *(f"src/pol/{name}" for name in named)}


def test_readme_lists_what_is_there():
    found = tree(ROOT / "README.md", "## Where things are")
    assert set(found) == entries(deep=False)
    assert all(found.values())


def test_architecture_lists_every_file():
    found = tree(ROOT / "docs" / "architecture.md", "## Every file")
    assert set(found) == entries(deep=True)
    assert all(remark for name, remark in found.items() if not name.endswith("__init__.py"))


def rows(page, title):
    """Cells of the first table after a title, without its head."""
    text = page.read_text()
    lines = text[text.index(title) :].splitlines()
    after = itertools.dropwhile(lambda line: not line.startswith("|"), lines)
    table = list(itertools.takewhile(lambda line: line.startswith("|"), after))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_architecture_has_the_dependency_rules():
    found = {names: (may, torch) for names, may, torch in rows(ROOT / "docs" / "architecture.md", "## Two worlds")}
    expected = {}
    for layer, allowed in test_layers.MAY_IMPORT.items():
        if layer not in test_layers.GROUND:
            may = "everything" if allowed == {""} else ", ".join(f"`{name}`" for name in sorted(allowed)) or "nothing"
            expected[f"`{layer}`"] = (may, "yes" if layer in test_layers.MAY_USE_TORCH else "no")
    ground = ", ".join(f"`{name}`" for name in sorted(test_layers.GROUND))
    expected[f"ground: {ground}"] = ("nothing", "no")
    assert found == expected


def caught_under_tolerance(name):
    expected = test_forgeries_tolerance.EXPECTED[name]
    return str(expected[0]) if expected else "accepted"


def caught_under_exact(name):
    layers = test_forgeries.CASES[name]
    return str(layers[0][0]) if len(layers) > 1 else "accepted"


def test_the_page_of_attacks_lists_every_attack():
    page = ROOT / "docs" / "attacks.md"
    assert rows(page, "## Every attack") == [
        [
            f"`{a.name}`",
            " ".join(a.study),
            a.title,
            a.forger,
            caught_under_exact(a.name),
            caught_under_tolerance(a.name),
        ]
        for a in REGISTRY.values()
    ]
    surviving = [[f"`{a.name}`", " ".join(a.study), a.survives] for a in REGISTRY.values() if a.survives]
    assert rows(page, "## What survives, and why") == surviving


def test_limits_are_those_of_the_code():
    found = {row[0]: row[1] for row in rows(ROOT / "docs" / "proof-format.md", "## 12. Limits")}
    mib = {
        "genesis, attestation payload": {genesis.MAX_GENESIS, attestation.MAX_ATTESTATION},
        "journal": {attestation.MAX_JOURNAL},
        "`secret.json`": {authenticate.MAX_SECRET},
        "line of the log": {log.MAX_LINE},
        "log": {store.MAX_LOG_FILE},
        "`dataset.bin`": {store.MAX_DATASET},
    }
    unit = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    for name, values in mib.items():
        number, word = found[name].split()[:2]
        assert values == {int(number) * unit[word]}, name
    assert found["safetensors header"] == f"{container.MAX_HEADER // 10**6} MB"
    assert found["files of a proof"] == f"{store.MAX_FILES:,}"
    assert found["entries of a state; rank"] == f"1 … {container.MAX_ENTRIES:,}; 64"
    assert found["schedule steps"].startswith(f"{shape.MAX_SCHEDULE_STEPS} ")


def policy_keys(kind, prefix=""):
    """Key -> its default as TOML, of a policy and its tables."""
    found = {}
    for name, field in zip(kind.__struct_fields__, msgspec.inspect.type_info(kind).fields, strict=True):
        table = next((t.cls for t in policies._options(field.type) if isinstance(t, msgspec.inspect.StructType)), None)
        if table:
            found |= policy_keys(table, f"{prefix}{name}.")
        elif field.required:
            found[f"{prefix}{name}"] = "required"
        else:
            default = getattr(kind(), name) if prefix not in ("limits.", "reference.") else field.default
            default = field.default_factory() if default is msgspec.NODEFAULT else default
            written = "{}" if default == {} else policies._line("x", default).removeprefix("x = ")
            found[f"{prefix}{name}"] = "" if default is None else f"`{written}`"
    return found


def test_policy_keys_are_those_of_the_code():
    found = {row[0].strip("`"): row[1] for row in rows(ROOT / "docs" / "policies.md", "## Every key")}
    expected = {**dict.fromkeys(policies.ONLY_IN_FILES, ""), **policy_keys(Policy), "name": "the file's"}
    assert found == expected


def test_bounds_of_the_preset_are_those_of_the_page():
    preset, found = policies.load("tolerance").bounds, {}
    for table in ("What is bounded in step 4", "What is bounded in step 5"):
        for row in rows(ROOT / "docs" / "policies.md", table):
            for name in row[0].replace("`", "").split(", "):
                found[name] = row[1]
    assert set(found) == set(preset.__struct_fields__)
    for name, written in found.items():
        value = getattr(preset, name)
        if name == "schedules":
            assert written == "those of torch, `by hand`"
        elif isinstance(value, bool):
            assert written == str(value).lower(), name
        else:
            assert float(written) == value, name


def test_policy_presets_are_those_of_the_code():
    assert [row[0].strip("`") for row in rows(ROOT / "docs" / "policies.md", "# Policies")] == list(policies.PRESETS)


def test_messages_are_those_of_the_code():
    source = "".join(path.read_text() for path in SRC.rglob("*.py"))
    found = [row[0] for row in rows(ROOT / "docs" / "recipes.md", "## Messages and what to do")]
    assert len(found) > 10
    for message in found:
        assert message.removeprefix("`").removesuffix("`") in source, message


def test_nothing_is_left_to_fill_in():
    for page in PAGES:
        text = re.sub(r"(?m)^@@ [-+,\d ]+ @@$", "", page.read_text())  # of a diff
        assert not re.search(r"@@|TODO|FIXME|XXX", text), page


@pytest.mark.parametrize("verdict", ["ACCEPT", "REJECT", "INCONCLUSIVE", "ACCEPT, by policy `paper-2021`"])
def test_each_verdict_is_explained_in_three_sentences(verdict):
    (paragraph,) = (
        part for part in (ROOT / "docs" / "verdicts.md").read_text().split("\n\n") if part.startswith(f"**{verdict}.**")
    )
    text = paragraph.removeprefix(f"**{verdict}.**").strip().replace("\n", " ")
    assert len(re.findall(r"[.?!](?: |$)", text)) == 3, text
