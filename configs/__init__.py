"""Config files: a file and the command line's overrides become one complete config.

A file defines `get_config(arg)`; `--config=configs/x.py:tiny` passes `"tiny"`, and
`--config.optim.learning_rate=3e-4` overrides a value.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from errors import UserError


def parse(
    argv: Sequence[str],
    switches: dict[str, str],
    counts: dict[str, str],
    texts: dict[str, str] | None = None,
) -> flags.FlagValues:
    """Reads `--config`, `--workdir` and others (name -> help).

    Switches are boolean; a count is a whole number of at least 1, or None where it is
    not given, as is a text.

    Raises:
      UserError: a flag or a config key that does not exist (with the nearest one), a
        value of another type, a config file that is missing or fails.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The config file, FILE.py or FILE.py:ARGUMENT.",
        flag_values=values,
        sys_argv=list(argv),
    )
    flags.DEFINE_string(
        "workdir", None, "The run folder [runs/NAME].", flag_values=values
    )
    for name, text in switches.items():
        flags.DEFINE_bool(name, False, text, flag_values=values)
    for name, text in counts.items():
        flags.DEFINE_integer(name, None, text, lower_bound=1, flag_values=values)
    for name, text in (texts or {}).items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    if "--help" in argv:
        usage = (
            f"usage: {argv[0]} --config=FILE.py[:ARGUMENT] [--config.GROUP.KEY=VALUE]"
        )
        lines = [f"  --{name}: {values[name].help}" for name in values]
        print("\n".join([usage, *sorted(lines)]))
        raise SystemExit(0)
    if not any(argument.startswith("--config=") for argument in argv):
        raise UserError("--config is missing: e.g. --config=configs/bert_mini.py")
    try:
        rest = values(list(argv))
        values.config.lock()
    except (flags.Error, AttributeError, KeyError) as error:
        message = str(error.args[0]).replace("\\n", ". ").replace("\\'", "").strip("'")
        raise UserError(f"{message} (in {' '.join(argv[1:])})") from error
    except (OSError, ImportError, SyntaxError, ValueError) as error:
        raise UserError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag: write --name=value")
    return values


def flatten(config: ConfigDict) -> dict[str, Any]:
    """`{"optim.learning_rate": 0.001, ...}`, as JSON would hold it."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        found = {}
        for key, inner in value.items():
            found |= walk(f"{prefix}.{key}" if prefix else key, inner)
        return found

    return walk("", json.loads(json.dumps(config.to_dict())))


def check_run_folder(folder: Path, config: ConfigDict) -> None:
    """Passes where there is no run yet, or one with the same config.

    Only `run` may differ: it holds what does not change results.

    Raises:
      UserError: the folder was made with another config; the differences are named.
    """
    if not (folder / "config.json").exists():
        return
    before, now = flatten(read_config(folder)), flatten(config)
    differing = [
        f"{name} was {before.get(name, 'absent')!r}, is {now.get(name, 'absent')!r}"
        for name in sorted(before.keys() | now.keys())
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
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    partial.replace(folder / "config.json")


def read_config(folder: Path) -> ConfigDict:
    """The config of a run folder.

    Raises:
      UserError: the folder is no run folder.
    """
    path = folder / "config.json"
    if not path.exists():
        seeds = sorted(str(found.parent) for found in folder.glob("seed_*/config.json"))
        raise UserError(
            f"{folder} is not a run folder (it has no config.json): give the --workdir "
            f"of a run{', such as ' + seeds[0] if seeds else ''}"
        )
    return ConfigDict(json.loads(path.read_text()))


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
        config.name += "_tiny"
        config.data.update(corpus="pydoc_topics", sequence_length=32, batch_size=8)
        config.data.heldout_fraction = 0.1
        config.data.tokenizer.update(path="", vocab_size=512)
        config.model.update(
            vocab_size=512, max_positions=32, num_layers=2, num_heads=2, head_dim=8
        )
        config.model.update(hidden_size=16, ffn_size=64)
        config.optim.update(total_steps=20, warmup_steps=4)
        config.run.update(log_every_steps=5, eval_every_steps=10, micro_batches=1)
        if config.objective.name == "masked_lm":
            config.objective.max_predictions = 5
    return config
