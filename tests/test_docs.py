"""The documents name nothing that does not exist."""

import ast
import pkgutil
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np

import configs
import configs.finetune
from configs.finetune import glue, topic
from configs.sweeps import tasks
from models import heads
from predict import parse_arguments
from score import parse_arguments as parse_score
from tasks import KINDS
from tests.task_examples import head_of
from training.optimizers import SETTINGS, Group, assign_groups, parse_groups
from training.runs import shapes_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTS}


def known_fields():
    """All fields of all configs, and the groups of fields among them."""
    made = [glue.get_config("mrpc")]
    for package in (configs, configs.finetune):
        for module in pkgutil.iter_modules(package.__path__):
            get_config = import_module(f"{package.__name__}.{module.name}")
            if hasattr(get_config, "get_config") and module.name != "glue":
                made.append(get_config.get_config())
    names = {name for config in made for name in configs.flatten(config)}
    return names | {name.rpartition(".")[0] for name in names}


def test_fields_that_the_documents_name_exist():
    known, found = known_fields(), 0
    groups = "data|model|objective|optim|run|task|head"
    for name, text in TEXTS.items():
        fields = re.findall(r"--config\.([a-z_0-9.]*[a-z_0-9])=", text)
        for quoted in re.findall(r"`([^`\n]+)`", text):
            fields += re.findall(rf"(?<![\w./-])(?:{groups})\.[a-z_0-9.]+\b", quoted)
        found += len(fields)
        wrong = sorted(set(fields) - known)
        assert not wrong, (name, wrong)
    assert found > 50


# Chosen before any model of the README had filled them in.
SENTENCES = (
    "returns the [MASK] of the list.",
    "if the file does not exist, an [MASK] is raised.",
    "the default value is [MASK].",
    "this function must be called [MASK] the thread is started.",
    "a [MASK] of strings, one for each line of the file.",
)


def test_the_readme_fills_in_sentences_that_were_fixed_beforehand():
    shown = re.findall(r'--text="(.*\[MASK\].*)"\n +\[MASK\]: \w', TEXTS["README.md"])
    assert tuple(shown) == SENTENCES


def test_tests_that_the_documents_name_exist():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", TEXTS["fidelity.md"])
    assert len(named) > 50
    for file, test in named:
        code = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"\ndef {test}(" in code, f"{file}::{test}"


def test_configs_and_files_that_the_documents_name_exist():
    for path, text in zip(DOCUMENTS, TEXTS.values(), strict=True):
        for config in re.findall(r"--config=(\S+?\.py)", text):
            assert (ROOT / config).is_file(), f"{path.name}: {config}"
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / link).is_file(), f"{path.name}: {link}"


def test_commands_that_the_documents_show_are_understood(monkeypatch):
    """Each field exists and takes the value, each flag exists."""
    monkeypatch.chdir(ROOT)
    understood = 0
    for text in TEXTS.values():
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M):
            if language:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line)
                if words[:1] != ["python"] or "..." in words:
                    continue
                if words[1] in configs.COMMANDS:
                    configs.parse(words[1:], words[1])
                elif words[1] == "predict.py":
                    parse_arguments(words[2:])
                elif words[1] == "score.py":
                    parse_score(words[2:])
                else:
                    continue
                understood += 1
    assert understood > 10


def test_groups_that_the_documents_show_are_groups():
    """Each setting has its row and its example, which fits a model with a head."""
    config = topic.get_config("tiny")
    spec = KINDS["classification"].head
    model = heads.build(config.model.to_dict(), spec, num_labels=2, head=head_of(0.1))
    batch = {"tokens": np.zeros((1, 8), np.int32)}
    batch |= dict.fromkeys(("segment_ids", "positions", "token_types"), batch["tokens"])
    params = shapes_of(
        model, batch | {"readout_positions": batch["tokens"][:, :1, None]}
    )
    optim, shown = config.optim, []
    for code in re.findall(r"`(\(\(.*?\)\))`", TEXTS["groups.md"], re.DOTALL):
        groups = parse_groups(ast.literal_eval(code.replace(r"\|", "|")))
        assign_groups(
            params, groups, weight_decay=optim.weight_decay, no_decay=optim.no_decay
        )
        shown.append(groups)
    assert len(shown) == len(SETTINGS) + 1
    rows = re.findall(r"^\| `(\w+)` \|", TEXTS["groups.md"], re.MULTILINE)
    assert rows == [*SETTINGS]
    for name, (first, *_) in zip(rows, shown, strict=False):
        assert getattr(first, name) != getattr(Group(".*"), name), name


def test_what_has_a_result_does_not_say_that_nothing_was_measured():
    """Configs that docs/results.md names, or whose tasks stand in its tables."""
    results = TEXTS["results.md"]
    measured = {*re.findall(r"configs/(?:finetune/)?(\w+)\.py", results)}
    for named in re.findall(r"sweeps/tasks\.py:DATA,([\w+:]+)", results):
        names = (one.partition(":")[0] for one in named.split("+"))
        measured |= {tasks.TASKS[name].config for name in names}
    assert {"gpt_mini", "nsmc", "tagging"} <= measured
    for folder in ("configs", "configs/finetune"):
        for path in sorted((ROOT / folder).glob("*.py")):
            notebook = ast.get_docstring(ast.parse(path.read_text())) or ""
            says_none = re.search(r"No [\s\w-]+has\s+been\s+measured", notebook)
            assert not (says_none and path.stem in measured), path


def test_the_step_that_the_documents_show_is_taken():
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXTS["step.md"], re.DOTALL | re.M)
    made = {}
    exec(code, made)
    assert made["state"].step == 1
    assert 5 < made["metrics"]["loss"] < 8  # ln 512 = 6.2
