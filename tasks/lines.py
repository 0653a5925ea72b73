"""Records from lines of text, or from the flags of predict.py.

A line has the texts of a record, apart by tabs, in the order of its kind's parts: every
text column ("texts"), or the text columns as one ("context") or as words apart by
spaces ("words"); the question, where the task has one; the answers.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from data import inputs, labelled
from data.labelled import Record
from errors import UserError
from tasks import splits
from tasks.encoding import Task
from tasks.record import FLAGS, Kind

WORD = re.compile(r"[\S\u00a0\u202f]+")  # no-break spaces are part of a word


def read_records(
    source: str | None,
    kind: Kind,
    task: Task,
    labels: tuple[str, ...],
    *,
    skip_blank: bool,
    wants_labels: bool,
) -> Iterator[Record]:
    """The records of a source; of lines those of `line_task`, without fields where
    they are blank.

    Raises:
        UserError: as `labelled.read`, `splits.check_columns`, of the labels only where
            they are wanted, `inputs.read_lines` and `line_record`.
    """
    if source is not None and inputs.is_labelled(source):
        records = labelled.read(source)
        named = splits.column_names(task, wants_labels)
        flags = {column: f"--{name}" for column, name in named.items()}
        splits.check_columns(source, records, flags, f"{min(flags.values())}=NAME")
        yield from records
        return
    for place, line in inputs.read_lines(source, skip_blank):
        texts = line.split("\t")
        yield (
            line_record(texts, kind, task, labels, place) if line else Record({}, place)
        )


def flag_texts(given: Mapping[str, Any], kind: Kind) -> list[str]:
    """The texts of a line out of flags; a flag that can be given again has a list."""
    texts: list[str] = []
    for flag in (flag for part in kind.line for flag in FLAGS[part] if flag in given):
        texts += given[flag] if isinstance(given[flag], list) else [given[flag]]
    return texts


def line_task(kind: Kind, task: Task) -> Task:
    """The task as lines have it: columns that are joined are one there."""
    whole = "texts" in kind.line
    return dataclasses.replace(
        task,
        text_columns=task.text_columns if whole else task.text_columns[:1],
        question_columns=task.question_columns[:1],
    )


def line_record(
    texts: list[str], kind: Kind, task: Task, labels: tuple[str, ...], place: str
) -> Record:
    """A record of the texts of a line (see the head of this file).

    Args:
        task: of `line_task`.

    Raises:
        UserError: an empty line or text, or a wrong number of them.
    """
    if not any(text.strip() for text in texts):
        raise UserError(f"{place} is empty: write a text there, or remove the line")
    answers = [*task.answer_columns]
    if len(answers) == 1:  # a list of them
        answers = [f"answer {label}" for label in labels]
    texts_of = dict.fromkeys(("texts", "context", "words"), task.text_columns)
    parts = texts_of | {"question": task.question_columns, "answers": answers}
    names = [name for part in kind.line for name in parts[part]]
    if len(texts) != len(names):
        raise UserError(
            f"{place}: {len(texts)} text(s), but this run's task takes {len(names)} "
            f"({', '.join(names)}): part them by tabs in a line, or give each its flag "
            "(--help)"
        )
    for name, text in zip(names, texts, strict=True):
        if not text.strip():
            raise UserError(f"{place}: the {name} is empty: fill it")
    fields: dict[str, Any] = dict(zip(names, texts, strict=True))
    if "words" in kind.line:
        fields = {name: WORD.findall(text) for name, text in fields.items()}
    if len(task.answer_columns) == 1:
        fields[task.answer_columns[0]] = [fields.pop(name) for name in answers]
    return Record(fields, place)
