"""A task's predictions, and how they are written: a table, or a JSON object a line."""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from data import inputs
from data.labelled import Record
from tasks.encoding import Examples, Task
from tasks.record import Kind, Scores

IDS = ("id", "idx")  # columns that name a record (SQuAD, GLUE)
LABEL_WIDTH, TEXT_WIDTH = 24, 60  # of a table, in columns of a terminal

Predicted = Iterable[tuple[Record, dict[str, Any]]]


def predict(
    kind: Kind,
    examples: Examples,
    records: list[Record],
    found: dict[int, Scores],
    task: Task,
) -> list[dict[str, Any]]:
    """A prediction for every record: its place, its `id` or `idx` if it has one, and
    what its kind says."""
    return [
        {"place": record.place}
        | {name: record.fields[name] for name in IDS if name in record.fields}
        | prediction
        for record, prediction in zip(
            records, kind.predict(examples, records, found, task), strict=True
        )
    ]


def json_lines(predicted: Predicted) -> Iterator[str]:
    """The predictions as they are, a JSON object a line."""
    for _, prediction in predicted:
        yield json.dumps(prediction, ensure_ascii=False)


def table(
    kind: Kind, task: Task, labels: tuple[str, ...], predicted: Predicted
) -> Iterator[str]:
    """Lines of aligned columns, long texts cut.

    The column "gold" is there if the first record has it, as wide as the first
    `inputs.CHUNK` rows want it, or the labels.
    """
    label = min(LABEL_WIDTH, max([5, *(Text(name).cell_len for name in labels)]))
    rows = (
        row
        for record, prediction in predicted
        # A blank line has none, and stays one.
        for row in (
            kind.rows(task, labels, record, prediction) if record.fields else [{}]
        )
    )
    first = list(itertools.islice(rows, inputs.CHUNK))
    if not first:
        return
    names = next(filter(None, first), {})
    gold = max(Text(row.get("gold", "")).cell_len for row in first)
    widths = {
        "label": label,
        "probability": 11,
        "gold": min(LABEL_WIDTH, max(label, gold)),
        "text": TEXT_WIDTH,
    } | kind.widths(label)
    columns = [(name, widths[name]) for name in names]
    yield _line({name: name for name, _ in columns}, columns)
    for row in itertools.chain(first, rows):
        yield _line(row, columns)


def _line(row: dict[str, str], columns: list[tuple[str, int]]) -> str:
    """The cells that the row has, each as wide in a terminal as its column."""
    cells = []
    for name, width in columns:
        cell = Text(" ".join(row.get(name, "").split()))
        cell.truncate(width, overflow="ellipsis", pad=True)
        cells.append(cell.plain)
    return "  ".join(cells).rstrip()
