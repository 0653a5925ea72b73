"""The house: which way imports run, and who may name a family, a way or a kind."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import models
from pretraining import PRETRAININGS
from tasks import KINDS

ROOT = Path(__file__).parent.parent
FILES = [
    Path(name)
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if (ROOT / name).exists()
]
LIBRARY = [
    path for path in FILES if path.parts[0] not in ("tests", "benchmarks", "docs")
]
ENTRY_POINTS = {path.stem for path in LIBRARY if len(path.parts) == 1} - {
    "errors",
    "settings",
}
GROUND = {"errors", "settings"}
BELOW = {
    "errors": set(),
    "settings": GROUND,
    "data": GROUND,
    "models": GROUND,
    "objectives": set(),
    "training": GROUND,
    "pretraining": GROUND | {"training", "models", "objectives", "data"},
    "tasks": GROUND | {"training", "models", "objectives", "data"},
}
BELOW["configs"] = BELOW["tasks"] | {"pretraining", "tasks"}
BELOW["formats"] = BELOW["configs"] | {"configs"}
BELOW["use"] = BELOW["configs"] | {"configs"}
ROOMS = {*BELOW, *ENTRY_POINTS}


def imported(path):
    """The rooms that a file imports."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from {name.split(".")[0] for name in names if name} & ROOMS


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_imports_run_one_way(path):
    room = path.parts[0].removesuffix(".py")
    others = {*imported(path)} - {room}
    if room in ENTRY_POINTS:
        assert not others & ENTRY_POINTS
    else:
        assert others <= BELOW[room]


def strings(path):
    """The string literals of a file, docstrings and the text of messages aside."""
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize(
    ("table", "room"),
    [(models.FAMILIES, "models"), (PRETRAININGS, "pretraining"), (KINDS, "tasks")],
    ids=["families", "ways", "kinds"],
)
def test_only_its_own_file_and_the_table_name_one(table, room):
    """By the name in the table, or by an isinstance of its class."""
    allowed = {Path(room) / "__init__.py", *(Path(room) / f"{n}.py" for n in table)}
    modules = {type_name for type_name in ("Bert", "Gpt")}
    for path in LIBRARY:
        if path in allowed or path.parts[0] in ("configs", "formats"):
            continue
        source = (ROOT / path).read_text()
        asked = re.findall(r"isinstance\([^)]*\b(\w+)\)", source)
        assert not modules & {*asked}, path
        named = {*strings(path)} & {*table}
        assert not named, f"{path} names {named}"
