"""Labelled data as records: named fields, and the place that each came from.

A source is named by one string. ``python_docs[@train|@eval|@test]`` is the embedded
task, docstring to library, which needs no download.
``tfds:NAME[/CONFIG][:VERSION]@SPLIT`` is a split of a TensorFlow Datasets data set
(slices such as ``train[:90%]`` and sums such as ``test_a+test_b`` work), with class
numbers turned into their names; a column that is -1 throughout, as the labels of GLUE's
test splits are, is left out. Anything else is a file, whose suffix decides:

- ``.tsv``, ``.csv``, ``.jsonl``, ``.parquet``: a record as `records` has it.
- ``.conll``: a word a line, its columns apart by tabs or spaces, the tag last; a blank
  line ends the sentence. ``-DOCSTART-`` lines are skipped, and those that begin with
  ``# `` unless they are a word with one of the file's tags. Fields: words, tags.
- ``.json``: SQuAD 1.1 or 2.0. Fields: id, title, context, question, and answers, a dict
  of the lists text and answer_start, which are empty for an impossible question.

All but Parquet may be compressed, as in `records`.

Every value is text, a list of values or a dict of values. Numbers become text as Python
writes them, whole ones without a point (1.0 is 1, as it is before a missing value turns
a column into floats); null and NaN, which say that there is none, become the empty
text. What the texts mean is `tasks`' matter.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import docstrings, records
from data.corpora import is_heldout
from data.records import numbered_lines
from errors import UserError

SUFFIXES = (*records.READERS, ".conll", ".json")
EXACT = 2**53  # whole numbers below it are exact as floats


@dataclass(frozen=True)
class Record:
    """One labelled example as it was written.

    Attributes:
        fields: column name -> text, list of values or dict of values.
        place: where it stands, for error messages: "train.tsv, line 3".
    """

    fields: dict[str, Any]
    place: str


def read(source: str) -> list[Record]:
    """All records of a source (see the head of this file), in order.

    Raises:
        UserError: no such file or data set, an unknown suffix, a damaged or malformed
            file (with the line), no records.
    """
    if source.partition("@")[0] == "python_docs":
        found = list(_python_docs_records(source.partition("@")[2]))
    elif source.startswith("tfds:"):
        found = list(_tfds_records(source.removeprefix("tfds:")))
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(
                f"labelled file {source!r}: no such file (in {Path.cwd()}); name a "
                f"file ({' '.join(SUFFIXES)}), tfds:NAME[/CONFIG]@SPLIT or python_docs"
            )
        found = list(_file_records(path))
    if not found:
        raise UserError(f"labelled data {source!r} holds no records")
    return found


def _file_records(path: Path) -> Iterable[Record]:
    suffix = records.format_of(path, SUFFIXES)
    if suffix == ".conll":
        return _conll_records(path)
    if suffix == ".json":
        return _squad_records(path)
    return (
        Record(_value(fields), place)
        for fields, place, _ in records.read_file(path, suffix)
    )


def _value(value: Any) -> Any:
    """Text, or a list or dict of texts; see the head of this file."""
    if isinstance(value, dict):
        return {str(name): _value(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_value(item) for item in value]
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, float | np.floating):
        return _number(value)
    return "" if value is None else str(value)


def _decoded(value: bytes) -> str | dict[str, str]:
    """An image, say, is no text: whoever asks for one there is told so."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"bytes": str(len(value))}


def _number(value: float | np.floating) -> str:
    if np.isnan(value):
        return ""
    is_whole = abs(value) < EXACT and float(value).is_integer()
    return str(int(value)) if is_whole else str(value)


# Words and questions


def _conll_records(path: Path) -> Iterator[Record]:
    lines = [(number, _conll_columns(line)) for number, line, _ in numbered_lines(path)]
    plain = [row for _, row in lines if row and row[0] not in ("#", "-DOCSTART-")]
    width = len(plain[0]) if plain else 0
    tags = {row[-1] for row in plain}
    sentence: list[list[str]] = []
    first = 0
    for number, row in [*lines, (0, [])]:
        if not row or row[0] == "-DOCSTART-":
            if sentence:
                words, tagged = [r[0] for r in sentence], [r[-1] for r in sentence]
                place = f"{path}, sentence of line {first}"
                yield Record({"words": words, "tags": tagged}, place)
            sentence = []
            continue
        is_word = len(row) == width and row[-1] in tags
        if row[0] == "#" and not sentence and not is_word:
            continue  # a comment
        _check_columns(row, width, f"{path}, line {number}")
        first = first if sentence else number
        sentence.append(row)


def _conll_columns(line: str) -> list[str]:
    """None of a blank line; a no-break space is part of a word."""
    if not line.strip():
        return []
    columns = line.split("\t") if "\t" in line else filter(None, line.split(" "))
    return [column.strip() for column in columns]


def _check_columns(row: list[str], width: int, place: str) -> None:
    if len(row) < 2 or not row[0] or not row[-1]:
        raise UserError(
            f"{place}: {' '.join(row)!r} is not a word, white space and a tag"
        )
    if len(row) != width:
        raise UserError(
            f"{place}: {len(row)} columns, but {width} before; part columns by tabs "
            "where words have spaces in them"
        )


def _squad_records(path: Path) -> list[Record]:
    text = "\n".join(line for _, line, _ in numbered_lines(path))
    content = records.parsed(text, str(path))
    try:
        return [
            _squad_record(path, article, paragraph["context"], question)
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is JSON, but not laid out as SQuAD's "
            f"data/paragraphs/context+qas/question+id+answers ({error!r}); records of "
            "other tasks are read from .jsonl, an object a line"
        ) from error


def _squad_record(path: Path, article: dict, context: str, question: dict) -> Record:
    fields = {
        "id": question["id"],
        "title": article.get("title", ""),
        "context": context,
        "question": question["question"],
    }
    if "answers" in question:  # a test set has none
        # In SQuAD 2.0 what an impossible question has are plausible answers only.
        impossible = "is_impossible" in question and question["is_impossible"]
        answers = [] if impossible else question["answers"]
        fields["answers"] = {
            "text": [answer["text"] for answer in answers],
            "answer_start": [answer["answer_start"] for answer in answers],
        }
    return Record(_value(fields), f"{path}, question {question['id']!r}")


# TensorFlow Datasets


def _tfds_records(name: str) -> Iterator[Record]:
    name, _, split = name.partition("@")
    builder = records.tfds_builder(name)
    rows = None
    with contextlib.suppress(ValueError, KeyError):  # malformed, unknown
        rows = list(records.read_tfds(builder, split)) if split else None
    if rows is None:
        raise UserError(
            f"labelled data 'tfds:{name}@{split}': the splits of {name} are "
            f"{', '.join(builder.info.splits)}; name one, such as tfds:{name}@train "
            f"or tfds:{name}@train[:90%]"
        )
    features = builder.info.features
    unknown = {
        column
        for column in features
        if all(_is_unknown(fields[column]) for fields, _, _ in rows)
    }
    for fields, place, _ in rows:
        named = _value(_named(fields, features))
        yield Record({n: v for n, v in named.items() if n not in unknown}, place)


def _is_unknown(value: Any) -> bool:
    """TFDS writes -1 for a class or a score that is kept secret."""
    return np.ndim(value) == 0 and value == -1


def _named(value: Any, feature: Any) -> Any:
    """A TFDS value with the names of its classes; -1, no label, is the empty text."""
    import tensorflow_datasets as tfds  # a second to import

    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value)) if value >= 0 else ""
    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: _named(value[key], feature[key]) for key in feature}
    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        if isinstance(inner, tfds.features.FeaturesDict):  # stored as a dict of lists
            return {key: [_named(v, inner[key]) for v in value[key]] for key in inner}
        return [_named(item, inner) for item in value]
    return value


# The embedded task


def _python_docs_records(split: str) -> Iterator[Record]:
    """Fields: text, label, file. A tenth is "eval" and a tenth "test", by the text."""
    if split not in ("", "train", "eval", "test"):
        raise UserError(
            f"labelled data 'python_docs@{split}': the splits are train, eval, test; "
            "python_docs alone is all three"
        )
    for fields, _, _ in records.read_file(docstrings.task_file(), ".jsonl"):
        own = "train"
        if is_heldout(fields["text"], 0.2):
            own = "test" if is_heldout(fields["text"], 0.1) else "eval"
        if split in ("", own):
            yield Record(fields, f"python_docs, {fields['file']}")
