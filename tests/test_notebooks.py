"""The notebooks: without outputs, the project's address in one place, and each of them
run from the first cell to the last, at a size that trains in seconds."""

import base64
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from use import notebook

ROOT = Path(__file__).parents[1]
BOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
COLAB = "https://colab.research.google.com/github"
ONE_DEVICE = "--xla_force_host_platform_device_count=1"
KOREAN = "".join(
    f"{who} {number}번 영화를 정말 {said}.\n\n"
    for who in ("우리는", "친구는", "배우가")
    for number in range(9)
    for said in ("좋아해요", "싫어해요", "봤어요")
)
KOREAN_TABLE = "text,label\n" + "영화를 좋아해요,긍정\n영화를 싫어해요,부정\n" * 20
TABLE = "text,label\n" + "the dog runs,animal\nthe car drives,thing\n" * 20

SETTINGS = {
    "pretrain": """
TEXT, CONFIG, OPTIONS = "", "configs/foreword_masked.py:tiny", []
RUN, DRIVE = f"{FOLDER}/run", False
MASKED, PROMPT = "returns the [MASK] of a list", "Returns"
""",
    "finetune": """
START, DATA = "", f"{FOLDER}/table.csv"
TEXT_COLUMN, LABEL_COLUMN = "text", "label"
OPTIONS = ["--config.model.num_layers=1", "--config.model.vocab_size=256"]
OPTIONS += ["--config.data.max_length=16", "--config.optim.epochs=1"]
RUN, DRIVE = f"{FOLDER}/run", False
TRY = ["the dog runs", "the car"]
""",
    "inside": """
CONFIG = "configs/foreword_masked.py:tiny"
OPTIONS = ["--config.objective.name=masked_diffusion"]
RUN = f"{FOLDER}/run"
TEXT, MASKED = "returns the end of a list", "returns the [MASK] of a list"
TEXTS = {"read": "reads a file", "write": "writes a file", "sine": "the sine of x"}
PROMPT, WORDS = "return the", 4
""",
    "ablation": """
CONFIG = "configs/foreword_masked.py:tiny"
SETTING, VALUES, SEEDS, BUDGET = "model.num_layers", (2, 1), (0,), "4 steps"
METRICS, FOLDER = ("eval/masked_loss",), f"{FOLDER}/run"
""",
    "tour": """
CONFIGS = {
    "GPT": "configs/foreword_causal.py:tiny",
    "BERT": "configs/foreword_masked.py:tiny",
    "ELMo": "configs/elmo_mini.py:tiny",
}
STEPS, OPTIONS = dict.fromkeys(CONFIGS, 8), ["--config.optim.warmup_steps=2"]
TASK, TASK_OPTIONS = "configs/finetune/topic.py:tiny", [
    f"--config.data.train={FOLDER}/table.csv",
    "--config.optim.epochs=1",
]
RUNS = f"{FOLDER}/run"
SENTENCE, PROMPT = "returns the name of a file", "returns"
WORD, MISSPELT, OTHERS = "function", "functoin", ["list", "error"]
""",
}
SETTINGS["tour_ko"] = f"""{SETTINGS["tour"]}
TEXT, TEXT_OPTIONS = f"{{FOLDER}}/korean.txt", ["--config.data.heldout_fraction=0.3"]
TASK = f"{{FOLDER}}/korean.csv"
TASK_OPTIONS = ["--config.optim.epochs=1", "--config.data.max_length=32"]
TEXT_COLUMN, LABEL_COLUMN = "text", "label"
OWN = {{"GPT": ["--config.data.tokenizer.algorithm=sentencepiece_unigram"]}}
SENTENCE, PROMPT = "영화가 정말 재미있다", "영화가"
"""
# At least so many, curves included.
PICTURES = {"pretrain": 1, "finetune": 3, "inside": 4, "ablation": 2, "tour": 9}
PICTURES["tour_ko"] = PICTURES["tour"]


def read(path):
    return nbformat.read(path, as_version=4)


def cell_with(book, text):
    (found,) = (cell for cell in book.cells if text in cell.source)
    return found


def settings_of(book):
    (found,) = (c for c in book.cells if "settings" in c.metadata.get("tags", ()))
    return found


def run(book, folder, cwd=ROOT / "notebooks", **options):
    """Each output of a cell, in order."""
    client = NotebookClient(
        book, timeout=300, resources={"metadata": {"path": str(cwd)}}, **options
    )
    client.execute()
    return [cell.get("outputs", []) for cell in book.cells]


@pytest.fixture(autouse=True)
def kernel(monkeypatch, tmp_path):
    """Its surroundings: one device, pictures in the notebook, nothing of the user's."""
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


@pytest.mark.parametrize("path", BOOKS.values(), ids=[*BOOKS])
def test_stripped_and_whole(path):
    book = read(path)
    nbformat.validate(book)
    assert settings_of(book)
    for cell in book.cells:
        assert cell.source.strip()
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id


@pytest.mark.parametrize("path", BOOKS.values(), ids=[*BOOKS])
def test_the_address_stands_in_one_place(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"].get("Repository", "")
    first, second = read(path).cells[:2]
    assert f'\nADDRESS = "{address}"  #' in second.source
    if not address:
        assert "the project has no address yet" in first.source
        return
    owner = address.removeprefix("https://github.com/")
    assert f"({COLAB}/{owner}/blob/main/notebooks/{path.name})" in first.source


@pytest.mark.parametrize("name", SETTINGS)
def test_runs_from_the_first_cell_to_the_last(name, tmp_path, monkeypatch):
    if name == "pretrain":
        eight = ONE_DEVICE.replace("=1", "=8")
        monkeypatch.setenv("XLA_FLAGS", eight)
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "korean.txt").write_text(KOREAN, encoding="utf-8")
    (tmp_path / "korean.csv").write_text(KOREAN_TABLE, encoding="utf-8")
    book = read(BOOKS[name])
    cell = settings_of(book)
    cell.source = f"FOLDER = {str(tmp_path)!r}\n{SETTINGS[name]}"
    outputs = [one for cell in run(book, tmp_path) for one in cell]
    pictures = [
        one.data["image/png"] for one in outputs if "image/png" in one.get("data", {})
    ]
    assert len(pictures) >= PICTURES[name]
    assert all(base64.b64decode(one)[:4] == b"\x89PNG" for one in pictures)
    errors = "".join(one.text for one in outputs if one.get("name") == "stderr")
    assert "Traceback" not in errors
    assert [*(tmp_path / "run").rglob("metrics.jsonl")]
    told = "".join(one.get("text", "") for one in outputs)
    assert f"on {8 if name == 'pretrain' else 1} x " in told
    if name != "ablation":  # elsewhere the bar shows it
        assert "\nstep 5/" not in told


BAD = {
    "pretrain": {
        'TEXT = f"{FOLDER}/none.txt"': "none.txt",
        'TEXT = f"{FOLDER}/one.txt"': "document",
        'OPTIONS = ["--config.optim.steps=3"]': "--config.optim.steps is no setting",
    },
    "finetune": {
        'LABEL_COLUMN = "topic"': "topic",
        'DATA = f"{FOLDER}/once.csv"': "label",
        'START = f"{FOLDER}/none"': "is not a run folder",
    },
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_sentence(name, tmp_path):
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "one.txt").write_text("one document alone")
    (tmp_path / "once.csv").write_text("text,label\na dog,animal\na car,thing\n")
    book = read(BOOKS[name])
    start, cells = book.cells[1], []
    own = f"FOLDER = {str(tmp_path)!r}\n{SETTINGS[name]}\nCOPY = ''\n"
    call = "train.train(" if name == "pretrain" else "finetune.finetune("
    options = "read_config("
    for number, bad in enumerate(BAD[name]):
        source = f"{own}\n{bad}\nRUN = f'{{FOLDER}}/run_{number}'"
        cells.append(nbformat.v4.new_code_cell(source))
        for text in (options, call):
            found = cell_with(book, text).source
            cells.append(nbformat.v4.new_code_cell(found))
    book.cells = [start, *cells]
    outputs = run(book, tmp_path, allow_errors=True)[1:]
    for number, (bad, said) in enumerate(BAD[name].items()):
        shown = [one for cell in outputs[3 * number : 3 * number + 3] for one in cell]
        told = [one.text for one in shown if one.get("name") == "stderr"]
        assert not [one for one in shown if one.output_type == "error"], bad
        errors = [line for line in "".join(told).splitlines() if "error: " in line]
        assert errors and said in errors[0], (bad, told)
        assert "Traceback" not in "".join(told)


def test_a_copy_is_whole_and_goes_both_ways(tmp_path):
    folder, target = tmp_path / "run", tmp_path / "drive" / "run"
    notebook.copy(folder, target)
    assert not target.exists()
    (folder / "checkpoints" / "4").mkdir(parents=True)
    (folder / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    (folder / "config.json").write_text("{}")
    for text in ("first", "second"):
        (folder / "metrics.jsonl").write_text(text)
        notebook.copy(folder, target)
        assert (target / "metrics.jsonl").read_text() == text
    assert [path.name for path in (target / "checkpoints").iterdir()] == ["4"]
    notebook.copy(target, tmp_path / "back")
    assert (tmp_path / "back" / "checkpoints" / "4").is_dir()
    assert not [*tmp_path.rglob("*.partial")]


def test_a_run_that_was_stopped_before_it_was_judged(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 3.0}\n')
    assert "stopped before" in notebook.against_lines(tmp_path).data


def test_batch_and_precision_suit_the_devices():
    def devices(count, **fields):
        return [SimpleNamespace(**fields)] * count

    assert notebook.suited(16, devices(1, platform="cpu")) == (16, "float32")
    assert notebook.suited(12, devices(8, platform="cpu")) == (16, "float32")
    assert notebook.suited(16, devices(8, platform="tpu")) == (64, "bfloat16")
    old, new = "7.5", "8.0"
    t4 = devices(1, platform="gpu", compute_capability=old)
    a100 = devices(1, platform="gpu", compute_capability=new)
    assert notebook.suited(16, t4) == (64, "float32")
    assert notebook.suited(16, a100) == (64, "bfloat16")


def test_an_accelerator_that_jax_does_not_use_is_told(tmp_path):
    assert notebook.fallen_back("cpu", tmp_path) == ""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert ".[cuda]" in notebook.fallen_back("cpu", tmp_path)
    assert notebook.fallen_back("gpu", tmp_path) == ""
    (tmp_path / "dev" / "nvidia0").rename(tmp_path / "dev" / "accel0")
    assert ".[tpu]" in notebook.fallen_back("cpu", tmp_path)


def test_the_hook_empties_what_is_committed(tmp_path):
    def git(*words):
        own = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        own += ["-c", f"core.hooksPath={ROOT / '.githooks'}"]
        line = ["git", *own, *words]
        done = subprocess.run(
            line, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    git("init", "-q")
    book = read(BOOKS["pretrain"])
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="told")]
    book.cells[1].execution_count = 3
    path = tmp_path / "a book.ipynb"
    nbformat.write(book, path)
    git("add", ".")
    git("commit", "-qm", "one")
    committed = git("show", f"HEAD:{path.name}")
    assert nbformat.reads(committed, as_version=4) == read(BOOKS["pretrain"])
    assert committed == path.read_text(encoding="utf-8")
