"""Config files: a file and the command line's overrides become one complete config.

A file defines `get_config(arg)`; `--config=configs/x.py:tiny` passes `"tiny"`, and
`--config.optim.learning_rate=3e-4` overrides a value.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - said before a package is missed
    sys.exit(f"error: Foreword needs Python 3.11 or later, not {sys.version}")

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from data import cache
from errors import UserError


class Command(NamedTuple):
    """A command that takes a config, and its flags by name, with their help.

    Attributes:
        kind: of config, "pretraining" or "finetuning".
        example: a config to begin with.
        switches: boolean.
        counts: whole numbers of at least 1, or None where not given, as are texts.
    """

    kind: str
    example: str
    switches: dict[str, str]
    counts: dict[str, str]
    texts: dict[str, str]


TRAINING_SWITCHES = {
    "show_batch": "Prints decoded examples and exits.",
    "dry_run": "Compiles the steps, prints what they cost and exits.",
    "distributed": "One of several processes of the same line: docs/scaling.md.",
}
SEEDS = "Runs so many seeds, in WORKDIR/seed_0 and on, and summarises them."
RAY = "Ray cluster that writes shards instead: auto, HOST:PORT or local."
PROCESSES = "Processes that write shards [one a core]."
MINI, TOPIC = "configs/bert_mini.py", "configs/finetune/topic.py"
COMMANDS = {
    "train.py": Command("pretraining", MINI, TRAINING_SWITCHES, {}, {}),
    "finetune.py": Command(
        "finetuning", TOPIC, TRAINING_SWITCHES, {"seeds": SEEDS}, {}
    ),
    "prepare.py": Command(
        "pretraining", MINI, {}, {"processes": PROCESSES}, {"ray": RAY}
    ),
}
OF_KIND = {"pretraining": "train.py", "finetuning": "finetune.py"}


def parse(argv: Sequence[str], command: str) -> flags.FlagValues:
    """Reads `--config`, `--workdir` and the other flags of a command.

    Needs no jax until the config has been read. `--help` and `--show_config` print and
    exit.

    Raises:
      UserError: a flag or a config key that does not exist (with the nearest one), a
        value of another type, a config file that is missing, fails or is of another
        kind.
    """
    kind, example, switches, counts, texts = COMMANDS[command]
    argv = _joined(argv)
    wants_help, argv = "--help" in argv, [word for word in argv if word != "--help"]
    values = _config_flag(argv)
    flags.DEFINE_string(
        "workdir", None, "The run folder [runs/NAME].", flag_values=values
    )
    switches = switches | {"show_config": "Prints all settings and exits."}
    for name, text in switches.items():
        flags.DEFINE_bool(name, False, text, flag_values=values)
    for name, text in counts.items():
        flags.DEFINE_integer(name, None, text, lower_bound=1, flag_values=values)
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    named = [word for word in argv if word.startswith("--config=")]
    example = f"--config={example}"
    if wants_help:
        lines = [f"  --{name}: {values[name].help}" for name in values]
        usage = f"usage: {argv[0]} --config=FILE.py[:ARGUMENT]"
        print("\n".join([f"{usage} [--config.GROUP.KEY=VALUE ...]", *sorted(lines)]))
        print("" if named else f"settings: python {argv[0]} {example} --help")
        if not named:
            raise SystemExit(0)
    if not named:
        raise UserError(f"--config is missing: e.g. {example}")
    rest = _read(values, argv, named[-1], command)
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag: write --name=value")
    if kind == "pretraining":
        with values.config.unlocked():
            keep_objective(values.config)
    if wants_help or values.show_config:
        print(describe(values.config))
        raise SystemExit(0)
    return values


def _joined(argv: Sequence[str]) -> list[str]:
    """The words, with `--config FILE` as the one that ml_collections looks for."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "--config":
            joined[-1] = f"--config={word}"
        else:
            joined.append(word)
    return joined


def _config_flag(argv: Sequence[str]) -> flags.FlagValues:
    """Flags with `--config`, and what the words override of it."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The config file, FILE.py or FILE.py:ARGUMENT.",
        flag_values=values,
        sys_argv=list(argv),
    )
    return values


def _read(
    values: flags.FlagValues, argv: list[str], named: str, command: str
) -> list[str]:
    """Reads the words; returns those that are no flags, the first one the command's."""
    try:
        _check_kind(named, command)
        rest = values(argv)
    except (flags.Error, AttributeError, KeyError) as error:
        message = unknown_setting(argv, named) or " ".join(str(error.args[0]).split())
        raise UserError(f"{message} (in {' '.join(argv[1:])})") from error
    except (OSError, ImportError, SyntaxError, ValueError) as error:
        raise UserError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    return rest


def unknown_setting(argv: Sequence[str], named: str) -> str:
    """What is said of the first word that sets what no setting is; "": none does."""
    file = _config_flag([named])
    file(["", named])
    values = _by_name(file.config.to_dict())
    for word in argv:
        name = word.removeprefix("--config.").partition("=")[0].partition("[")[0]
        if not word.startswith("--config.") or name in values:
            continue
        key, keys = (
            name.split(".")[-1],
            {known: known.split(".")[-1] for known in values},
        )
        near = [known for known in values if key == keys[known]]  # of another group
        near += [known for known in values if known.startswith(f"{name}.")]
        near += [known for known in values if key == _initials(keys[known])]
        near += difflib.get_close_matches(name, values, cutoff=0.75)
        hint = f"did you mean --config.{near[0]}?" if near else "see --show_config"
        return f"--config.{name} is no setting of {named.partition('=')[2]}: {hint}"
    return ""


def _initials(name: str) -> str:
    """learning_rate -> lr"""
    return "".join(word[:1] for word in name.split("_"))


def _check_kind(named: str, command: str) -> None:
    """Before anything is overridden that only the right kind has."""
    file = _config_flag([named])
    file(["", named])
    found, wanted = kind_of(file.config), COMMANDS[command]
    if found != wanted.kind:
        other = OF_KIND[found]
        raise UserError(
            f"{named} is a config for {other}: run python {other} {named}, or give "
            f"{command} one such as --config={wanted.example}"
        )


def kind_of(config: ConfigDict) -> str:
    return "finetuning" if "task" in config else "pretraining"


def describe(config: ConfigDict) -> str:
    """A line a setting: its value, what it is, what it may be."""
    from configs._settings import other_rows, rows_of

    values = _by_name(config.to_dict())
    rows = other_rows(values) | rows_of(values)
    notes = {row.name: f"{row.help} ({row.wanted()})" for row in rows.values()}
    return "\n".join(
        f"{name}={value!r}  # {notes.get(name, 'Unknown.')}"
        for name, value in values.items()
    )


def check(config: ConfigDict, workdir: Path | None = None) -> None:
    """Checks all that can be checked before anything is read.

    A run in `workdir` must have the same config, but for `run`, which holds what does
    not change results; what must fit what was seen to when it was begun.

    Raises:
      UserError: a setting that is unknown, missing, of another type or out of its
        range, that does not fit others, or that the run there has otherwise.
    """
    from configs._settings import other_rows, own_rows, rows_of, rules_of
    from pretraining import check_model

    values = flatten(config)
    rows = rows_of(values)
    known = other_rows(values) | rows
    for name in sorted(values.keys() - known.keys()):
        near = difflib.get_close_matches(name, known.keys() - values.keys(), n=1)
        raise UserError(
            f"the config has {name}={values[name]!r}, which is no setting of it: "
            f"{f'did you mean {near[0]}?' if near else 'remove it'}"
        )
    own = own_rows(values)
    for name, row in known.items():
        if row not in own and (name in rows or name in values):
            row.check_in(values)
    if "objective.name" in values:  # says more than that the way's settings lack
        check_model(config.objective.name, config.model.to_dict())
    if lacking := [row.name for row in own if row.name not in values]:
        raise UserError(
            f"the config has no {', '.join(lacking)}, which its way to pre-train or "
            "kind of task reads: begin with a config that has them"
        )
    for row in own:
        row.check_in(values)
    if workdir is not None and (workdir / "config.json").exists():
        check_same(workdir, config)
        return
    for rule in rules_of(config):
        sentence = rule(config)
        if sentence:
            raise UserError(sentence)


def keep_objective(config: ConfigDict) -> None:
    """Of `objective` only what its way to pre-train reads, where another brought more.

    So one line changes the way: --config.objective.name=masked_lm.
    """
    from pretraining import PRETRAININGS, way_of

    own = {row.name for row in way_of(config.objective.name).settings}
    for way in PRETRAININGS.values():
        for row in way.settings:
            key = row.name.removeprefix("objective.")
            if row.name not in own and key in config.objective:
                del config.objective[key]


def flatten(config: ConfigDict) -> dict[str, Any]:
    """`{"optim.learning_rate": 0.001, ...}`, as JSON would hold it."""
    return json.loads(json.dumps(_by_name(config.to_dict())))


def _by_name(tree: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for key, value in tree.items():
        inner = _by_name(value) if isinstance(value, dict) else {}
        values |= {f"{key}.{name}": found for name, found in inner.items()}
        if not isinstance(value, dict):
            values[key] = value
    return values


def check_same(folder: Path, config: ConfigDict) -> None:
    """Raises UserError, naming what differs, unless a run has this config."""
    from configs._settings import other_rows, rows_of

    there = read_config(folder)
    if kind_of(there) != kind_of(config):
        raise UserError(
            f"{folder} holds a run of {OF_KIND[kind_of(there)]}, not of "
            f"{OF_KIND[kind_of(config)]}: give another --workdir"
        )
    before, now = flatten(there), flatten(config)
    unread = other_rows(now).keys() - rows_of(now).keys()  # those of other kinds
    differing = [
        f"{name} was {before.get(name, 'absent')!r}, is {now.get(name, 'absent')!r}"
        for name in sorted((before.keys() | now.keys()) - unread)
        if not name.startswith("run.")
        and before.get(name, "absent") != now.get(name, "absent")
    ]
    if differing:
        raise UserError(
            f"{folder} holds a run made with another config: {'; '.join(differing)}. "
            "Use another --workdir, or the settings of that run to resume it"
        )


def write_run_folder(folder: Path, config: ConfigDict) -> None:
    """Makes the folder and writes `config.json` into it, whole or not at all."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    cache.write_whole(folder / "config.json", text.encode())


def read_config(folder: Path) -> ConfigDict:
    """The config of a run folder, also of one that was begun before all settings were.

    Raises:
      UserError: the folder is no run folder, or of a model that is unknown here.
    """
    from configs._settings import upgrade

    path = folder / "config.json"
    if not path.exists():
        seeds = sorted(str(found.parent) for found in folder.glob("seed_*/config.json"))
        raise UserError(
            f"{folder} is not a run folder (it has no config.json): give the --workdir "
            f"of a run{', such as ' + seeds[0] if seeds else ''}"
        )
    values = upgrade(_by_name(json.loads(path.read_text())))
    return ConfigDict(_nested(values))


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *groups, key = name.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[key] = value
    return tree


def amount(written: int | str) -> FieldReference:
    """A setting that may be a number or a text, as "300M tokens"; ml_collections else
    holds it to the type that it has first."""
    return FieldReference(written, field_type=object)


def variant(config: ConfigDict, arg: str) -> ConfigDict:
    """`config` itself for `""`; for `"tiny"` the same at a size that trains in seconds.

    Raises:
      UserError: another `arg`.
    """
    if arg not in ("", "tiny"):
        raise UserError(
            f"{config.name} has no variant {arg!r}: write nothing after the file name, "
            "or :tiny"
        )
    if arg == "tiny":
        from models import FAMILIES

        config.name += "_tiny"
        config.model.update(FAMILIES[config.model.family].tiny)
        if "task" in config:
            _make_task_tiny(config)
        else:
            _make_pretraining_tiny(config)
    return config


def _make_task_tiny(config: ConfigDict) -> None:
    config.data.update(train_examples=32, max_length=32, batch_size=8)
    config.data.update(max_question_length=12, window_stride=8)
    config.run.update(log_every_steps=2)


def _make_pretraining_tiny(config: ConfigDict) -> None:
    from models import FAMILIES
    from pretraining import PRETRAININGS

    way, vocab_size = PRETRAININGS[config.objective.name], config.model.vocab_size
    config.data.update(corpus="pydoc_topics", sequence_length=32, batch_size=8)
    config.data.phases = ()
    config.data.heldout_fraction = 0.1
    config.data.tokenizer.path = ""
    if "tokens" in FAMILIES[config.model.family].inputs:  # else it reads any word
        config.data.tokenizer.vocab_size = vocab_size
    config.objective.update(way.tiny(config.objective, config.data.sequence_length))
    config.optim.update(total_steps=20, warmup_steps=4, eval_every_steps=10)
    config.run.update(log_every_steps=5, micro_batches=1)
