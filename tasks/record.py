"""What the rest of the house must know of a kind of task, as a typed record.

No jax here nor at the head of the kinds' files: the flags of predict.py come from them,
and a loss imports it when it is made.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from data.labelled import Record
from settings import Rule, Setting
from tasks.encoding import Encoded, Examples, Split, Task

Batch = dict[str, Any]
Scores = Any  # of one example, NumPy
Prediction = dict[str, Any]
COLUMNS = ("text_columns", "question_columns", "answer_columns")
# Part of a line of text -> the flags of predict.py that give it.
FLAGS = {
    "texts": ("text", "text_b"),
    "context": ("text",),
    "words": ("text",),
    "question": ("question",),
    "answers": ("answers",),
}


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """What the head of a kind of task reads, and how much it says of it.

    Attributes:
        reads: "tokens", every hidden state; "examples", for each the sum of the states
            at its readout positions; "readouts", each of them by itself.
        num_outputs: K, from the number of labels.
        drops: whether there is dropout before its layer.
    """

    reads: str
    num_outputs: Callable[[int], int]
    drops: bool = True


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a kind of task is to the others.

    Attributes:
        columns: of `COLUMNS` those it has -> the least and most that it takes.
        labels: (record, task) -> names of the labels in a record; None: it has none.
        misfit: (training records, task, labels, metric) -> why nothing can be learnt
            from them, or not be measured so; None: it can.
        encode: (split) -> its examples, and a line for every record that lost text.
        head: what it reads of a base.
        loss: (scores of the head, batch) -> (loss sum, weight sum, metrics).
        found: (batch, scores of the head) -> index and scores of each example there.
        predict: (examples, records, scores by index, task) -> what is predicted of
            every record.
        metrics: their names.
        measure: (predictions with "gold", labels, task) -> value by name.
        is_constant: (predictions) -> whether several all say the same: a run that
            failed.
        floor: (training examples) -> the loss of who does not look at the text.
        lines: (task, labels, training records, records) -> what those come to who only
            count, predictions of the records by name.
        rows: (task, labels, record, prediction) -> the rows of a table, cells by
            column, the text last.
        widths: (width of a label) -> the columns that only it has, and their widths.
        described: (batch, examples, tokenizer, row) -> lines that say what the row of a
            batch is to predict.
        line: the parts of a line of text, of `FLAGS`.
        command: of predict.py.
        help: what the command predicts.
        settings: that only it reads; `Task.own` has their values.
        rules: what must fit what.
    """

    columns: Mapping[str, tuple[int, int]]
    labels: Callable[[Record, Task], list[str]] | None
    misfit: Callable[[list[Record], Task, tuple[str, ...], str], str | None]
    encode: Callable[[Split], tuple[list[Encoded], list[str]]]
    head: HeadSpec
    loss: Callable[[Any, Batch], tuple]
    found: Callable[[Batch, np.ndarray], Iterator[tuple[int, Scores]]]
    predict: Callable[
        [Examples, list[Record], dict[int, Scores], Task], list[Prediction]
    ]
    metrics: tuple[str, ...]
    measure: Callable[[list[Prediction], tuple[str, ...], Task], dict[str, float]]
    is_constant: Callable[[list[Prediction]], bool]
    floor: Callable[[Examples], float]
    rows: Callable[
        [Task, tuple[str, ...], Record, Prediction], Iterator[dict[str, str]]
    ]
    widths: Callable[[int], dict[str, int]]
    described: Callable[[Batch, Examples, Any, int], list[str]]
    line: tuple[str, ...]
    command: str
    help: str
    settings: tuple[Setting, ...]
    rules: tuple[Rule, ...]
    lines: Callable[
        [Task, tuple[str, ...], list[Record], list[Record]],
        Mapping[str, list[Prediction]],
    ] = lambda *_: {}
