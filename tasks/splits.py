"""The task of a config or a run; the splits of its data read, encoded, in batches."""

import collections
import dataclasses
import functools
import hashlib
import json
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from data import labelled
from data.labelled import Record
from data.tokenizers import Tokenizer
from errors import UserError
from tasks import packing
from tasks.encoding import Examples, Frame, Split, Task, field, in_order
from tasks.packing import RowShape
from tasks.predictions import IDS
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


def repeated_id(records: list[Record]) -> str:
    """What is said of records that share their `id` or `idx`; "" where none do."""
    for column in IDS:
        ids = [record.fields.get(column) for record in records]
        seen = collections.Counter(found for found in ids if isinstance(found, str))
        repeated = [found for found, count in seen.items() if count > 1]
        if repeated:
            shared = repeated[0]
            places = [records[i].place for i, x in enumerate(ids) if x == shared]
            return (
                f"{len(repeated)} {column} of several records each, which predictions "
                f"cannot be told apart by: {shared!r} at {' and '.join(places[:2])}"
            )
    return ""


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
    frame: Frame,
    *,
    labels: tuple[str, ...],
    labelled: bool,
    max_length: int,
) -> Examples:
    """Encodes a split.

    Args:
        records: see `labelled.read`.
        frame: of the model.
        labels: of `label_names` on the training split, whatever the split.
        labelled: False: the label column is not looked at and all weights are 0.
        max_length: of one sequence, special tokens included; what is cut each kind
            says.

    Raises:
        UserError: with file and line: a column
            that is missing, an empty text, a label that is not among `labels`, and
            whatever the kind cannot read.
    """
    if max_length < MIN_LENGTH:
        raise UserError(f"max_length={max_length} must be at least {MIN_LENGTH}")
    split = Split(records, task, tokenizer, frame, labels, labelled, max_length)
    encoded, cuts = kind.encode(split)
    pad = tokenizer.special_ids.get("pad", 0)  # GPT's vocabularies have none
    return Examples(labels, encoded, cuts, pad)


def read(
    data: Any, seed: int, kind: Kind, task: Task
) -> tuple[dict[str, list[Record]], tuple[str, ...]]:
    """The records of "train" and "eval", and of "test" where one is named; the labels.

    Labels are learnt from all training records, not only from `train_examples`.

    Args:
        data: of a config.
        seed: of the choice of `train_examples`.

    Raises:
        UserError: see `labelled.read`; columns of the task that are not there; too few
            records to hold some out.
    """

    def read_split(split: str, source: str) -> list[Record]:
        found = labelled.read(source)
        named = column_names(task, has_labels(split, found, task))
        check_columns(
            source,
            found,
            {column: f"task.{name}" for column, name in named.items()},
            "--config.task.label_column=NAME --config.task.text_columns=\"('NAME',)\"",
        )
        return found

    train = read_split("train", data.train)
    if data.eval:
        held_out = read_split("eval", data.eval)
    else:
        # Its own seed: the same records are held out whatever the run's seed.
        order = np.random.default_rng(0).permutation(len(train)).tolist()
        count = max(1, round(data.eval_fraction * len(train)))
        held_out = [train[i] for i in sorted(order[:count])]
        train = [train[i] for i in sorted(order[count:])]
        if not train:
            raise UserError(f"{data.train} has one record: too few to hold one out")
    labels = label_names(kind, train, task)
    if data.train_examples:
        if data.train_examples > len(train):
            raise UserError(
                f"data.train_examples={data.train_examples}, but {data.train} has "
                f"{len(train)} training records: lower it, or 0 for all"
            )
        generator = np.random.default_rng([seed, 1])
        chosen = generator.permutation(len(train))[: data.train_examples]
        train = [train[i] for i in sorted(chosen.tolist())]
    records = {"train": train, "eval": held_out}
    if data.test:
        records["test"] = read_split("test", data.test)
    return records, labels


@dataclasses.dataclass(frozen=True)
class Splits:
    """The splits "train", "eval" and perhaps "test", encoded, and their batches."""

    task: Task
    labels: tuple[str, ...]
    records: dict[str, list[Record]]
    examples: dict[str, Examples]
    shapes: dict[str, RowShape]

    @property
    def steps_per_epoch(self) -> float:
        shape = self.shapes["train"]
        return len(packing.pack_all(self.examples["train"].lengths, shape)) / shape.rows

    def batches(self, split: str, seed: int) -> grain.MapDataset:
        """Of "train" without end, by the seed; of the others every example once."""
        examples, shape = self.examples[split], self.shapes[split]
        if split == "train":
            return packing.training_batches(examples, shape, seed=seed)
        return packing.evaluation_batches(examples, shape)

    def is_labelled(self, split: str) -> bool:
        return has_labels(split, self.records[split], self.task)

    def digests(self) -> dict[str, str]:
        """Of the records of each split."""
        return {
            split: hashlib.blake2b(
                json.dumps([record.fields for record in records]).encode(),
                digest_size=8,
            ).hexdigest()
            for split, records in self.records.items()
        }


def check_columns(
    source: str, records: list[Record], names: Mapping[str, str], example: str
) -> None:
    """Raises UserError, with all of them, where no record of a source has a column.

    Args:
        names: column -> the setting or flag that names it.
        example: how such is given.
    """
    there = {column: None for record in records for column in record.fields}
    missing = [f"{column!r} ({names[column]})" for column in names.keys() - there]
    if missing:
        raise UserError(
            f"{source} has no column {' and no '.join(sorted(missing))}; its columns "
            f"are {', '.join(map(repr, there))}: name the right ones, such as {example}"
        )


def column_names(task: Task, labelled: bool) -> dict[str, str]:
    """Column that a task reads -> the setting of `task` that names it."""
    names = {column: name for name in COLUMNS for column in getattr(task, name)}
    return names | ({task.label_column: "label_column"} if labelled else {})


def has_labels(split: str, records: list[Record], task: Task) -> bool:
    """A test split may come without the column of labels."""
    return split != "test" or task.label_column in records[0].fields


def encode_all(
    data: Any,
    kind: Kind,
    task: Task,
    tokenizer: Tokenizer,
    frame: Frame,
    records: dict[str, list[Record]],
    labels: tuple[str, ...],
) -> Splits:
    """The splits of `read`, for the model of a frame; `data` is that of a config.

    Raises:
        UserError: see `encode` and `packing.row_shape`.
    """
    examples = {
        split: encode(
            kind,
            mine,
            task,
            tokenizer,
            frame,
            labels=labels,
            labelled=has_labels(split, mine, task),
            max_length=data.max_length,
        )
        for split, mine in records.items()
    }
    shapes = {
        split: packing.row_shape(
            encoded,
            examples_per_batch=data.batch_size,
            longest_row=max(2 * data.max_length, int(encoded.lengths.max())),
            packed=data.packed,
            read_once=split != "train",
        )
        for split, encoded in examples.items()
    }
    return Splits(task, labels, records, examples, shapes)
