"""The house: which way imports run, and who may name a family, a way or a kind."""

import ast
import subprocess
import sys
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
        # As a notebook it calls what the others have.
        assert room == "sweep" or not others & ENTRY_POINTS
    else:
        assert others <= BELOW[room]


# What a model predicts is called as the way that needs it; those who may ask for it.
OUTPUTS = {name for family in models.FAMILIES.values() for name in family.outputs}
ASK_FOR_OUTPUTS = ("models", "pretraining", "use", "auxiliary_lm.py")
# A way to compute updates is called as the release that computed it so.
EXCUSED = {("training/optimizers.py", name) for name in ("bert", "elmo")}
TABLES = {"models": models.FAMILIES, "pretraining": PRETRAININGS, "tasks": KINDS}


def names_in(source, outputs=frozenset()):
    """All that a source can name something by: its strings, as far as they do not ask
    for one of the outputs, and the modules that it imports, with their rooms."""
    tree = ast.parse(source)
    compared = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            # "causal_lm" in outputs is no comparison with it.
            parts = node.comparators
            if not isinstance(node.ops[0], ast.In | ast.NotIn):
                parts = [node.left, *parts]
            compared |= {id(x) for part in parts for x in ast.walk(part)}
        elif isinstance(node, ast.MatchValue):
            compared |= {id(x) for x in ast.walk(node)}
        elif isinstance(node, ast.Assign):
            compared.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value not in outputs or id(node) in compared:
                yield node.value
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def named(path, room):
    """What a file names of the table of a room."""
    table = TABLES[room]
    may_ask = {path.parts[0], path.name} & {*ASK_FOR_OUTPUTS}
    names = {*names_in((ROOT / path).read_text(), OUTPUTS if may_ask else frozenset())}
    found = {name for name in table if {name, f"{room}.{name}"} & names}
    return {name for name in found if (str(path), name) not in EXCUSED}


@pytest.mark.parametrize("room", TABLES)
def test_only_its_own_file_and_the_table_name_one(room):
    """Configs are the user's names for them, formats are those of others."""
    for path in LIBRARY:
        of_the_room = path.parts[0] == room
        if path.parts[0] in ("configs", "formats"):
            continue
        if of_the_room and path.name == "__init__.py":
            continue
        own = {path.stem} if of_the_room else set()
        assert not named(path, room) - own, path


def test_what_names_one_is_found():
    """The test above would see each of these, where outputs may be asked for, too."""
    for source in (
        'if objective.name == "causal_lm": pass',
        'if objective.name in ("causal_lm", "other"): pass',
        'match objective.name:\n    case "causal_lm": pass',
        'config.objective.name = "causal_lm"',
    ):
        assert "causal_lm" in names_in(source, OUTPUTS), source
    assert "models.gpt" in names_in("from models import gpt")
    assert "models.gpt" in names_in("from models.gpt import Gpt")
    for source in ('output["causal_lm"]', '"causal_lm" in family.outputs'):
        assert "causal_lm" not in names_in(source, OUTPUTS), source


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_nobody_asks_for_the_class_of_a_model(path):
    modules = {family.module.__name__ for family in models.FAMILIES.values()}
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        asked = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asked = node.args if node.func.id in ("isinstance", "issubclass") else []
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        names = {
            getattr(x, "id", getattr(x, "attr", None))
            for part in asked
            for x in ast.walk(part)
        }
        assert not modules & names


def loaded_by(statement):
    """What a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {*done.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import errors, settings",
        "import data.inputs, data.labelled, data.masking, data.shards, data.windows",
        "import pretraining, pretraining.corpus, tasks",
        "import prepare",
    ],
)
def test_what_needs_no_jax_loads_none(statement):
    assert "jax" not in loaded_by(statement)
