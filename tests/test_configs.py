"""Every config is complete, every setting is read, and every `:tiny` trains.

After a change that is meant `python -m tests.test_configs` writes their values anew.
"""

import ast
import functools
import importlib
import inspect
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import configs
import train
from configs import _settings, gpt2
from configs.finetune import glue
from errors import UserError

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))
TASKS = sorted(path.stem for path in (ROOT / "configs/finetune").glob("[!_]*.py"))


def get_config(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def all_configs():
    """One of every file and argument, and of the files `:tiny`."""
    arguments = {"gpt2": [*gpt2.SIZES], "finetune.glue": []}
    for task in glue.TASKS:
        arguments["finetune.glue"] += [task, f"{task}:gpt1", f"{task}:tiny"]
    for name in [*FILES, *(f"finetune.{task}" for task in TASKS)]:
        for arg in arguments.get(name, [""]):
            yield get_config(name, arg)
        if name != "finetune.glue":
            yield get_config(name, "tiny")


def snapshot():
    """Setting -> value -> names of the configs that have it; "all" that have any."""
    found = {}
    for config in all_configs():
        for setting, value in configs.flatten(config).items():
            values = found.setdefault(setting, {})
            values.setdefault(json.dumps(value), []).append(config.name)
    return {
        setting: {
            value: " ".join(names) if len(values) > 1 else "all"
            for value, names in values.items()
        }
        for setting, values in found.items()
    }


def parse(*arguments, command="train.py"):
    return configs.parse([command, *arguments], command)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Forty short documents, and an empty cache."""
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    words = "the model reads a short text and learns which word may follow it".split()
    documents = [
        "\n".join(
            " ".join(words[(i * j + k) % len(words)] for k in range(9)) + "."
            for j in range(1, 7)
        )
        for i in range(1, 41)
    ]
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(documents))
    return path


@pytest.mark.parametrize("name", FILES)
def test_tiny_trains_two_steps_and_resumes(name, corpus, tmp_path, capsys):
    config = get_config(name, "tiny")
    config.data.update(corpus=str(corpus), heldout_fraction=0.3)
    config.data.tokenizer.vocab_size = 300
    config.optim.update(total_steps=2, warmup_steps=1)
    config.run.mesh.data = 1
    workdir = tmp_path / "run"
    done = train.train(config, workdir)
    assert (done.folder, done.step, done.signal) == (workdir, 2, None)
    assert done.metrics["loss"] > 0
    said = capsys.readouterr().out
    assert "held-out loss" in said
    assert "\ngroup  tensors" in said and "layer_0/" not in said
    assert "\nlayer_0/" in (workdir / "parameters.txt").read_text()
    assert (workdir / "curves.png").exists()
    assert json.loads((workdir / "config.json").read_text())["name"] == config.name
    assert train.train(config, workdir) == done  # already: says so
    assert "step 2: the run is done\n" in capsys.readouterr().out
    config.optim.learning_rate *= 2
    with pytest.raises(UserError, match=r"optim\.learning_rate was .*, is "):
        train.train(config, workdir)


def test_a_change_shows_in_every_config_that_it_changes():
    before = json.loads((GOLDEN / "configs.json").read_text())
    now = snapshot()
    changed = {
        setting: (before.get(setting), now.get(setting))
        for setting in before.keys() | now.keys()
        if before.get(setting) != now.get(setting)
    }
    assert not changed, "python -m tests.test_configs, if it is meant"


def test_configs_are_right():
    names = [config.name for config in all_configs()]
    assert len(set(names)) == len(names) > 60
    for config in all_configs():
        if "task" in config:
            config.data.train = config.data.train or "labelled.tsv"
        configs.check(config)
    for name in [*FILES, *(f"finetune.{task}" for task in TASKS)]:
        assert inspect.getdoc(importlib.import_module(f"configs.{name}")), name


def words_of(path):
    """Names and whole strings in the code of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for field in ("id", "attr", "arg", "value"):
            if isinstance(word := getattr(node, field, None), str):
                yield word
        # What a kind of task is given of its own goes by the whole name.
        match node:
            case ast.Subscript(slice=ast.Constant(str(name))):
                yield name.rpartition(".")[2]


def test_no_setting_is_dead():
    """Each is a row, each row is in some config, and the code names its key."""
    there = {name for config in all_configs() for name in configs.flatten(config)}
    rows = {}
    for config in all_configs():
        values = configs.flatten(config)
        rows |= _settings.other_rows(values) | _settings.rows_of(values)
    assert rows.keys() == there
    apart = {"tests", "benchmarks", "docs", "configs", "notebooks"}
    code = [
        path
        for path in ROOT.rglob("*.py")
        if not apart & {*path.relative_to(ROOT).parts} and ".venv" not in path.parts
    ]
    read = {word for path in code for word in words_of(path)}
    assert not {name for name in there if name.rpartition(".")[2] not in read}
    assert all(row.help.endswith((".", "...")) for row in rows.values())


# What is refused, each in one sentence.


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("objective.name", "electra", "must be one of causal_lm, masked_lm, masked_d"),
        ("model.family", "bart", "must be one of bert, gpt"),
        ("model.precision", "float16", "must be one of float32, bfloat16"),
        ("model.activation", "silu", "must be one of gelu_erf"),
        ("run.remat", "all", "must be one of none, matmuls, block"),
        ("run.parallel", "fsdp", "must be one of jit, pmap"),
        ("optim.schedule", "cosin", "must be one of linear, cosine"),
        ("optim.adam", "lion", "must be one of adamw, bert, gpt1"),
        ("data.tokenizer.algorithm", "bpe", "must be one of wordpiece, byte_bpe"),
        ("data.tokenizer.unicode_form", "NFD", "must be one of none, NFC"),
        ("run.log_every_steps", 0, "must be a whole number, at least 1"),
        ("optim.eval_every_steps", 0, "must be a whole number, at least 1"),
        ("optim.total_steps", 0, "must be a whole number, at least 1"),
        ("run.logit_chunks", 0, "must be a whole number, at least 1"),
        ("run.micro_batches", -1, "must be a whole number, at least 0"),
        ("run.mesh.data", 0, "must be at least 1, or -1, the rest"),
        ("model.num_layers", 0, "must be a whole number, at least 1"),
        ("model.num_heads", 0, "must be a whole number, at least 1"),
        ("model.num_heads", True, "must be a whole number, at least 1"),
        (
            "model.attention_dropout",
            1.0,
            "must be a number, at least 0 and less than 1",
        ),
        ("model.residual_dropout", -0.1, "must be a number, at least 0 and less than"),
        ("model.embedding_dropout", math.nan, "must be a number, at least 0"),
        ("optim.learning_rate", -1e-3, "must be a number, at least 0"),
        ("optim.end_learning_rate", -1e-3, "must be a number, at least 0"),
        ("optim.clip_norm", -1.0, "must be a number, at least 0"),
        ("optim.b2", 1.0, "must be a number, at least 0 and less than 1"),
        ("optim.warmup_steps", 20, "less than optim.total_steps=20"),
        ("optim.groups", ((".*", {"froze": True}),), "the setting 'froze'"),
        ("optim.groups", ((".*", {"schedule": 5}),), "schedule=5: use one of linear"),
        ("optim.groups", ((".*", {"thaw_at": True}),), "thaw_at=True: it must be a n"),
        ("optim.groups", ((".*", {"thaw_at": 0.5}),), "thaw_at=0.5: use a whole numb"),
        ("optim.groups", "frozen", "must be a tuple"),
        ("optim.no_decay", (5,), "must be a tuple of regular expressions"),
        ("optim.total_steps", "1e999 tokens", "or a text such as '300M tokens'"),
        ("data.phases", ((1, {"batch_size": 10**30}),), "must be a whole number"),
        ("data.tokenizer.special_tokens", "mask", "'mask' is no ROLE=PIECE"),
        (
            "data.tokenizer.special_tokens",
            "mask=x",
            "is of a tokenizer that is brought",
        ),
        ("data.tokenizer.casing", "cased", "is of a tokenizer that is brought"),
        ("data.tokenizer.casing", "lower", "must be one of found, cased, uncased"),
        ("seed", 2**32, "at least 0 and less than 4294967296"),
        ("objective.mask_rate", 1.5, "must be a number, more than 0 and at most 1"),
        ("objective.mask_rate", "half", "must be a number, more than 0"),
        ("data.heldout_fraction", 0.0, "must be a number, more than 0 and less than 1"),
        ("data.heldout_tokens", -1, "must be a whole number, at least 0"),
        ("data.sequence_length", 64, "is longer than model.max_positions=32"),
        ("data.tokenizer.vocab_size", 600, "is more than model.vocab_size=512"),
        ("model.next_sentence_head", True, "but model.pooler=False"),
        ("seed", None, "must be a whole number, at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(path, value, message):
    config = get_config("bert_mini", "tiny")
    configs.check(config)
    tree = config.to_dict()
    *groups, key = path.split(".")
    functools.reduce(dict.__getitem__, groups, tree)[key] = value
    with pytest.raises(UserError) as found:
        configs.check(ConfigDict(tree))
    assert str(found.value).startswith(path) and message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("task.kind", "regression", r"'regression' must be one of classification, "),
        ("task.metric", "bleu", r"task.metric='bleu'.* is measured by one of accuracy"),
        ("data.train", "", r"data.train is empty"),
        ("data.eval_fraction", 0.0, r"data.eval_fraction=0 must be more than 0"),
        ("optim.epochs", 0.0, r"optim.epochs=0.0 must be a number, more than 0"),
        ("optim.warmup_fraction", 1.0, r"=1.0 must be a number, at least 0 and less"),
        ("optim.layerwise.decay", 0.0, r"layerwise.decay=0.0 must be a number, more"),
        ("head.dropout", 1.0, r"head.dropout=1.0 must be a number, at least 0 and les"),
        ("run.micro_batches", -1, r"run.micro_batches=-1 must be a whole number, at"),
        ("model.next_sentence_head", True, r"but model.pooler=False"),
    ],
)
def test_settings_of_fine_tuning_that_make_no_sense_are_refused(path, value, message):
    config = get_config("finetune.topic")
    config.data.train = "topics.tsv"
    configs.check(config)
    config.update_from_flattened_dict({path: value})
    with pytest.raises(UserError, match=message):
        configs.check(config)


@pytest.mark.parametrize("name", ["finetune.tagging", "finetune.squad"])
def test_the_mean_of_a_text_is_not_for_tasks_of_its_tokens(name):
    config = get_config(name)
    config.data.train = "tags.conll"
    configs.check(config)
    config.head.pooling = "mean"
    with pytest.raises(UserError, match=r"'mean' .* labels its tokens: leave it at"):
        configs.check(config)


# Of each type, values of the others, and of its own what no run can have.
OTHERS = {
    bool: (5, "x", None, (True,)),
    int: ("x", 1.5, None, True, (5,), {"a": 1}, 2**63),
    float: ("x", None, True, (0.5,), {"a": 1}, math.inf, math.nan, -math.inf),
    str: (5, None, True, ("x",), {"a": 1}),
    tuple: (5, "x", None, {"a": 1}, (5,), ((1,),), (None,), ("(",), ((".*", 5),)),
}
# Those that some settings may have all the same: a text, an update.
OF_TEXTS = ("task.text_columns", "task.question_columns", "task.answer_columns")
FITTING = {("(",): (*OF_TEXTS, "task.labels"), (5,): ("run.keep_weights_at",)}


@pytest.mark.parametrize("name", ["bert_mini", "bert_base", "gpt2", "finetune.topic"])
def test_a_value_of_another_type_is_refused_in_one_sentence(name):
    """Every setting, those of other kinds of task as well, whatever it is given."""
    config = get_config(name, "tiny")
    if "task" in config:
        config.data.train = "topics.tsv"
    values = configs.flatten(config)
    for path, row in (_settings.other_rows(values) | _settings.rows_of(values)).items():
        *groups, key = path.split(".")
        for value in OTHERS[row.type]:
            if isinstance(value, tuple) and path in FITTING.get(value, ()):
                continue
            tree = config.to_dict()
            functools.reduce(dict.__getitem__, groups, tree)[key] = value
            with pytest.raises(UserError) as found:
                configs.check(ConfigDict(tree))
            said = str(found.value)
            assert "\n" not in said and (path in said or isinstance(value, dict))


def test_a_schedule_that_is_scaled_by_the_warm_up_needs_one():
    config = get_config("finetune.glue", "mrpc:gpt1")
    config.optim.warmup_fraction = 0.0
    with pytest.raises(UserError, match=r"'gpt1_linear' is scaled by the warm-up"):
        configs.check(config)


def test_unknown_and_missing_settings_are_named():
    config = get_config("bert_mini")
    config.model.num_layer = 4
    del config.model.num_layers
    with pytest.raises(
        UserError, match=r"num_layer=4, .*did you mean model.num_layers"
    ):
        configs.check(config)
    del config.model["num_layer"]
    with pytest.raises(
        UserError, match=r"has no model.num_layers: add it, a whole num"
    ):
        configs.check(config)
    del config.model["family"]
    with pytest.raises(
        UserError, match=r"has no model.family: add it, one of bert, gp"
    ):
        configs.check(config)
    config = get_config("gpt_mini")
    config.objective.zyx = 1
    with pytest.raises(UserError, match=r"objective.zyx=1, .*: remove it"):
        configs.check(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optim.learning_rte=1"], r"did you mean --config.optim.learning_r"),
        (["--config.optm.learning_rate=1"], r"did you mean --config.optim.learning_r"),
        (["--config.learning_rate=1"], r"did you mean --config.optim.learning_rate\?"),
        (["--config.optim.lr=1"], r"optim.lr is no .*mean --config.optim.learning_r"),
        (["--config.run.mesh=2"], r"run.mesh is no .*did you mean --config.run.mesh.d"),
        (["--config.qqq=2"], r"qqq is no setting of .*bert_mini.py: see --show_config"),
        (["--config.data.batch_size=1.5"], "invalid literal for int.*: '1.5' "),
        (["--wrkdir=x"], "Did you mean: workdir"),
        (["tiny"], "'tiny' is not a flag"),
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(f"--config={ROOT}/configs/bert_mini.py", *arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("configs/bert_minni.py", "bert_minni.py"),
        ("configs/bert_mini.py:tinny", "tinny"),
        ("configs/gpt2.py:huge", "huge"),
    ],
)
def test_config_files_and_variants_that_do_not_exist_are_named(argument, message):
    with pytest.raises(UserError, match=message):
        parse(f"--config={ROOT}/{argument}")


def test_no_config_is_named():
    with pytest.raises(UserError, match=r"--config is missing.*configs/bert_mini.py"):
        parse()
    with pytest.raises(UserError, match=r"is missing.*configs/finetune/topic.py"):
        parse("--config", command="finetune.py")


def test_a_config_of_the_other_command_is_refused():
    topic, mini = f"{ROOT}/configs/finetune/topic.py", f"{ROOT}/configs/bert_mini.py"
    with pytest.raises(
        UserError, match=r"topic.py is a config for finetune.py: run py"
    ):
        parse(f"--config={topic}", "--config.data.train=topics.tsv")
    with pytest.raises(UserError, match=r"bert_mini.py is a config for train.py: run"):
        parse("--config", mini, "--config.optim.total_steps=3", command="finetune.py")


def test_overrides_and_variants_reach_the_config():
    flags = parse(
        f"--config={ROOT}/configs/gpt2.py:xl", "--config.optim.learning_rate=1"
    )
    assert flags.config.model.num_layers == 48
    assert flags.config.optim.learning_rate == 1.0
    flags = parse("--config", f"{ROOT}/configs/gpt2.py:xl", "--workdir", "runs/x")
    assert (flags.config.model.num_layers, flags.workdir) == (48, "runs/x")


def test_a_line_changes_the_way_to_pretrain():
    config = f"--config={ROOT}/configs/bert_base.py"
    name = "--config.objective.name=masked_lm"
    found = parse(config, name, "--config.model.next_sentence_head=False").config
    configs.check(found)
    assert "short_seq_prob" not in found.objective
    assert found.is_locked
    mini = [f"--config={ROOT}/configs/bert_mini.py", "--config.model.pooler=True"]
    mini.append("--config.model.next_sentence_head=True")
    with pytest.raises(UserError, match=r"has no objective.short_seq_prob, objective"):
        configs.check(parse(*mini, "--config.objective.name=next_sentence").config)


@pytest.mark.parametrize("switch", ["--help", "--show_config"])
def test_settings_are_shown_as_they_are(switch, capsys):
    config = f"--config={ROOT}/configs/bert_mini.py:tiny"
    with pytest.raises(SystemExit) as left:
        parse(config, "--config.optim.b2=0.5", switch)
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert (
        "optim.b2=0.5  # Of its mean of squares. (a number, at least 0 and less than 1)"
        in shown
    )
    settings = [line for line in shown.splitlines() if "  # " in line]
    assert len(settings) == len(configs.flatten(get_config("bert_mini")))
    assert ("--workdir: The run folder" in shown) == (switch == "--help")


WITH_CONFIG = (
    (["--help"], 0, "usage: "),
    (["--confg=x"], 2, "error: --config is missing"),
    (["--config={}", "--wrkdir=x"], 2, "Did you mean: workdir"),
    (["--config={}", "--config.optim.lr=1"], 2, "did you mean --config.optim.learn"),
)
FLAGS = [(command, *line) for command in configs.COMMANDS for line in WITH_CONFIG]
FLAGS += [
    ("predict.py", ["answer", "--help"], 0, "--question QUESTION"),
    ("predict.py", ["embed", "--workdir=x", "--pooling=x"], 2, "invalid choice: 'x'"),
    ("convert.py", ["import", "--help"], 0, "--source SOURCE"),
    ("convert.py", ["export", "--workdr=x"], 2, "arguments are required: --workdir"),
]


@pytest.mark.parametrize(("command", "arguments", "status", "said"), FLAGS)
def test_flags_are_read_before_jax_is_imported(command, arguments, status, said):
    words = arguments
    if command in configs.COMMANDS:
        words = [word.format(configs.COMMANDS[command].example) for word in arguments]
    script = (
        "import runpy, sys\n"
        "try:\n"
        f"    runpy.run_path({command!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('jax' in sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == status, found.stderr
    assert said in found.stdout + found.stderr
    assert found.stdout.endswith("False\n")


def test_a_run_of_the_other_command_is_told_as_one(tmp_path):
    topic = importlib.import_module("configs.finetune.topic").get_config("tiny")
    configs.write_run_folder(tmp_path, get_config("bert_mini"))
    with pytest.raises(UserError, match=r"holds a run of train.py, not of finetune.py"):
        configs.check_same(tmp_path, topic)


def test_help_without_a_config_says_how_to_see_the_settings(capsys):
    with pytest.raises(SystemExit):
        parse("--help", command="finetune.py")
    shown = capsys.readouterr().out
    assert "--show_config: " in shown
    assert "--config=configs/finetune/topic.py --help" in shown


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.vocab_size", 200, r"vocab_size=300 is more than model.vocab_size=200"),
        (
            "data.tokenizer.path",
            "vocab.txt",
            r"has 600 pieces, but model.vocab_s.*=512",
        ),
        ("data.batch_size", 12, r"data.batch_size=12 does not divide over 8 devices"),
        ("data.corpus", "nowhere/*.txt", "nowhere"),
        ("objective.mask_rate", 1.5, "objective.mask_rate=1.5"),
        ("run.mesh.data", 16, "run.mesh.data=16"),
    ],
)
def test_bad_settings_stop_before_anything_is_written(
    path, value, message, corpus, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *{*corpus.read_text().split()},
    ]
    pieces = [*words, *map(str, range(600 - len(words)))]
    Path("vocab.txt").write_text("\n".join(pieces) + "\n")
    config = get_config("bert_mini", "tiny")
    config.data.update(corpus=str(corpus), heldout_fraction=0.3)
    config.data.tokenizer.vocab_size = 300
    config.update_from_flattened_dict({path: value})
    with pytest.raises(UserError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_changed_corpus_is_no_resumption(corpus, tmp_path):
    config = get_config("bert_mini", "tiny")
    config.data.update(corpus=str(corpus), heldout_fraction=0.3)
    config.data.tokenizer.vocab_size = 300
    config.optim.update(total_steps=1, warmup_steps=0)
    config.run.mesh.data = 1
    done = train.train(config, tmp_path / "run")
    corpus.write_text(corpus.read_text() + "\n\nOne more document, quite new.")
    assert train.train(config, tmp_path / "run") == done  # looks at no text any more
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"the run in .* was made from something else"):
        train.train(config, tmp_path / "run")


def test_only_run_may_differ(tmp_path):
    config = get_config("bert_mini", "tiny")
    configs.write_run_folder(tmp_path, config)
    changed = ConfigDict(config.to_dict())
    changed.run.log_every_steps = 1
    configs.check_same(tmp_path, changed)
    changed.objective.mask_rate = 0.3
    with pytest.raises(UserError, match=r"objective.mask_rate was 0.4, is 0.3"):
        configs.check_same(tmp_path, changed)


# Runs of before.


OLDER = json.loads((GOLDEN / "older_configs.json").read_text())


@pytest.mark.parametrize("name", OLDER)
def test_runs_that_were_begun_before_a_setting_go_on(name, tmp_path):
    """Configs as runs had them when precision and evaluation were in `run`."""
    (tmp_path / "config.json").write_text(json.dumps(OLDER[name]))
    file = "finetune.topic" if name == "topic_tiny" else name.removesuffix("_tiny")
    now = get_config(file, "tiny")
    if name == "bert_mini_tiny":
        now.objective.max_predictions = 5
    if "task" in now:
        now.optim.no_decay = (r".*/bias", r".*/scale")
        now.optim.learning_rate = 1e-4
    else:
        now.data.heldout_tokens = 0
    expected = configs.flatten(now)
    expected.pop("task.null_position", None)  # another kind's, which nothing reads
    assert configs.flatten(configs.read_config(tmp_path)) == expected
    configs.check_same(tmp_path, now)
    was = now.model.precision
    now.model.precision = {"float32": "bfloat16", "bfloat16": "float32"}[was]
    with pytest.raises(UserError, match=rf"model.precision was '{was}', is '\w+'"):
        configs.check_same(tmp_path, now)


if __name__ == "__main__":
    with (GOLDEN / "configs.json").open("w") as file:
        json.dump(snapshot(), file, indent=1)
        file.write("\n")
