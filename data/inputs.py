"""Texts that a run is used on: lines, or a column of records."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from data import labelled, records
from data.records import numbered_lines
from errors import UserError

CHUNK = 1024  # what is read, computed and written at a time

T = TypeVar("T")


def in_chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Lists of `CHUNK` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


def is_labelled(source: str | None) -> bool:
    """Whether a source has records with columns, and not lines of text."""
    if source is None:
        return False
    if source.startswith("tfds:") or source.partition("@")[0] == "python_docs":
        return True
    return records.without_compression(source).endswith(labelled.SUFFIXES)


def read_lines(source: str | None, skip_blank: bool) -> Iterator[tuple[str, str]]:
    """Place and text of the lines of a file (also compressed), or None: of stdin.

    The text of a blank line is empty, so that what is said of the lines stands in their
    order, or the line is passed over. Says on stderr where all are blank.

    Raises:
        UserError: no such file, or what is not UTF-8.
    """
    is_empty = True
    for place, line in _all_lines(source):
        if line.strip():
            is_empty = False
            yield place, line
        elif not skip_blank:
            yield place, ""
    if is_empty:
        print(f"{source or 'stdin'} holds no text", file=sys.stderr)


def _all_lines(source: str | None) -> Iterator[tuple[str, str]]:
    if source is not None:
        path = Path(source)
        if not path.is_file():
            raise UserError(f"--input={path} is not a file")
        for number, line, _ in numbered_lines(path):
            yield f"{path}, line {number}", line
        return
    if sys.stdin.isatty():
        print("reading lines; Ctrl-D ends them", file=sys.stderr)
    for number, line in enumerate(sys.stdin.buffer, 1):
        place = f"stdin, line {number}"
        try:
            yield place, line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise records.not_utf8(place, line) from error


def read_texts(
    source: str | None, column: str, skip_blank: bool
) -> Iterator[tuple[str, str]]:
    """Place and text of lines, or of a column of records.

    Raises:
        UserError: as `read_lines` and `labelled.read`, or no such column.
    """
    if not is_labelled(source):
        yield from read_lines(source, skip_blank)
        return
    for record in labelled.read(source):
        if not isinstance(record.fields.get(column), str):
            raise UserError(
                f"{record.place}: no text in a column {column!r}; the columns there "
                f"are {', '.join(record.fields)}: name one, --column=NAME"
            )
        yield record.place, record.fields[column]
