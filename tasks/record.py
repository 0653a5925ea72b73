"""What the rest of the house must know of a kind of task, as a typed record."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data.labelled import Record
from models.heads import HeadSpec
from settings import Rule, Setting
from tasks.encoding import Encoding, Examples, Split, Task

Batch = dict[str, Any]
Scores = Any  # of one example, NumPy


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a kind of task is to the others.

    Attributes:
        columns: least and most text, question and answer columns that it takes.
        labels: (record, task) -> names of the labels in a record; None: it has none.
        encode: (split) -> its examples.
        head: what it reads of a base.
        loss: (scores of the head, batch) -> (loss sum, weight sum, metrics).
        found: (batch, scores) -> (index of an example, its scores), of each in a batch.
        predict: (examples, records, scores by index of the example, task) -> for every
            record what is predicted, without place and id.
        metrics: their names; the first is what a config without another is chosen by.
        measure: (predictions with "gold", labels) -> value by name.
        is_constant: (predictions) -> whether all say the same: a run that failed.
        floor: (training examples) -> the loss of who does not look at the text.
        rows: (task, labels, record, prediction) -> cells of a table by column, the text
            last; a record may have several.
        widths: of the columns that only it has, in columns of a terminal.
        described: (batch, examples, tokenizer, row) -> lines that say what the row of a
            batch is to predict.
        line_order: the parts of a line of text, of "text", "question", "answers".
        command: of predict.py, and its flags beside --text.
        settings: that only it reads.
        rules: what must fit what.
    """

    columns: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    labels: Callable[[Record, Task], list[str]] | None
    encode: Callable[[Split], Encoding]
    head: HeadSpec
    loss: Callable[[Any, Batch], tuple]
    found: Callable[[Batch, np.ndarray], Iterator[tuple[int, Scores]]]
    predict: Callable[
        [Examples, list[Record], dict[int, Scores], Task], list[dict[str, Any]]
    ]
    metrics: tuple[str, ...]
    measure: Callable[[list[dict[str, Any]], tuple[str, ...]], dict[str, float]]
    is_constant: Callable[[list[dict[str, Any]]], bool]
    floor: Callable[[Examples], float]
    rows: Callable[..., Iterator[dict[str, str]]]
    widths: dict[str, int]
    described: Callable[..., list[str]]
    line_order: tuple[str, ...]
    command: str
    flags: tuple[str, ...]
    settings: tuple[Setting, ...]
    rules: tuple[Rule, ...]
