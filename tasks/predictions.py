"""A task's predictions, and how they are written: a table, or a JSON object a line."""

import json
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

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

    The column "gold" is there if the first record has it.
    """
    label = min(LABEL_WIDTH, max([5, *map(_width, labels)]))
    shared = {"label": label, "probability": 11, "gold": label, "text": TEXT_WIDTH}
    widths = shared | kind.widths(label)
    columns: list[str] = []
    for record, prediction in predicted:
        for row in kind.rows(task, labels, record, prediction):
            if not columns:
                columns = [*row]
                yield _line([(name, widths[name]) for name in columns])
            cells = dict.fromkeys(columns, "") | row
            yield _line([(cells[name], widths[name]) for name in columns])


def _line(cells: list[tuple[str, int]]) -> str:
    return "  ".join(_fitted(text, width) for text, width in cells).rstrip()


def _fitted(text: str, width: int) -> str:
    """So many columns of a terminal; where text was cut stands an ellipsis."""
    text = " ".join(text.split())
    kept = text[:width]
    while _width(kept) > width:
        kept = kept[:-1]
    if len(kept) < len(text):
        kept = kept[:-1] + "…"
    return kept + " " * (width - _width(kept))


def _width(text: str) -> int:
    """Columns of a terminal: Chinese, Japanese and Korean characters take two."""
    wide = sum(unicodedata.east_asian_width(mark) in "WF" for mark in text)
    return len(text) + wide - sum(unicodedata.combining(mark) > 0 for mark in text)
