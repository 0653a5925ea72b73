"""The task of a config or a run, and a split of its records encoded by its kind."""

import dataclasses
import functools
import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.labelled import Record
from data.tokenizers import Tokenizer
from errors import UserError
from models.family import Family
from tasks.encoding import Examples, Split, Task, field, in_order, make_frame
from tasks.record import COLUMNS, Kind

MIN_LENGTH = 8


def make_task(config: Any, kind: Kind) -> Task:
    """The task of a config; no labels means that they are learnt from the data.

    Raises:
        UserError: too few or too many columns, or a label that stands there twice.
    """
    spec = config["task"]
    columns = {name: tuple(spec[name]) if name in spec else () for name in COLUMNS}
    for name, found in columns.items():
        least, most = kind.columns.get(name, (0, 0))
        if not least <= len(found) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise UserError(
                f"task.{name}={found!r}: a task of kind {spec['kind']!r} takes "
                f"{wanted} of them, as a tuple of names"
            )
    labels = tuple(spec["labels"])
    if len({*labels}) < len(labels):
        raise UserError(f"task.labels={labels!r} has a name twice")
    own = {
        row.name: functools.reduce(operator.getitem, row.name.split("."), config)
        for row in kind.settings
    }
    return Task(
        spec["kind"],
        label_column=spec["label_column"],
        labels=labels or None,
        own=own,
        **columns,
    )


def save_task(folder: Path, task: Task, labels: tuple[str, ...]) -> None:
    """Writes task.json into a run folder: the task, with its labels by their ids."""
    spec = dataclasses.asdict(task) | {"labels": labels}
    text = json.dumps(spec, indent=2, ensure_ascii=False) + "\n"
    (folder / "task.json").write_text(text, encoding="utf-8")


def load_task(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The kind that a run was fine-tuned for, and its labels in the order of their ids;
    the rest is in its config."""
    spec = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    return spec["kind"], tuple(spec["labels"])


def is_task_run(folder: Path) -> bool:
    """Whether a run was fine-tuned."""
    return (folder / "task.json").exists()


def label_names(kind: Kind, records: list[Record], task: Task) -> tuple[str, ...]:
    """The names of `task.labels`, or else all that the training records have, sorted;
    none for a kind that has no labels."""
    if kind.labels is None:
        return ()
    if task.labels is not None:
        return task.labels
    return in_order(name for record in records for name in kind.labels(record, task))


def texts(records: list[Record], task: Task) -> Iterator[str]:
    """All that a model of the task reads, to learn a tokenizer from."""
    columns = (*task.text_columns, *task.question_columns, *task.answer_columns)
    for record in records:
        for column in columns:
            value = field(record, column)
            yield value if isinstance(value, str) else " ".join(value)


def encode(
    kind: Kind,
    records: list[Record],
    task: Task,
    tokenizer: Tokenizer,
    family: Family,
    *,
    labels: tuple[str, ...],
    labelled: bool,
    max_length: int,
) -> Examples:
    """Encodes a split.

    Args:
        records: see `labelled.read`.
        family: of the model.
        labels: of `label_names` on the training split, whatever the split.
        labelled: False: the label column is not looked at and all weights are 0.
        max_length: of one sequence, special tokens included; what is cut each kind
            says.

    Raises:
        UserError: special tokens that the tokenizer lacks; with file and line: a column
            that is missing, an empty text, a label that is not among `labels`, and
            whatever the kind cannot read.
    """
    frame = make_frame(tokenizer, family)
    if max_length < MIN_LENGTH:
        raise UserError(f"max_length={max_length} must be at least {MIN_LENGTH}")
    split = Split(records, task, tokenizer, frame, labels, labelled, max_length)
    encoded, cuts = kind.encode(split)
    pad = tokenizer.special_ids.get("pad", 0)  # GPT's vocabularies have none
    return Examples(labels, encoded, cuts, pad)
