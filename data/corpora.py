"""Where the text comes from: an iterator of documents, read in constant memory.

A corpus is named by one string:

- ``python_docs``: the embedded default, needs no download: the docstrings of the
  standard library and of Foreword's installed dependencies, filtered to prose, and the
  topics of ``pydoc``. Built once and kept in the cache (see `docstrings`).
- ``pydoc_topics``: those topics alone, about half a megabyte, in memory at once.
- ``tfds:NAME[/CONFIG][:VERSION]``: a TensorFlow Datasets data set; of its splits
  "train", so that published test splits stay unseen, or all where there is none.
- anything else: a file, a glob, or several with commas between. The suffix decides:
  ``.txt``, or one of `records`, each also compressed.

Which documents are held out depends on their text alone (`is_heldout`), never on their
position, so that adding a file moves no document from one side to the other.
"""

import glob
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import cache, docstrings, records
from errors import UserError

LEADING_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")  # blank ones
BOUNDARIES = ("blank_line", "file", "paragraph", "line")
SUFFIXES = (".txt", *records.READERS)
DOCUMENT_CHARACTERS = 64 << 20  # of one document at most, which memory holds
EMBEDDED = ("python_docs", "pydoc_topics")


def is_heldout(document: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out part, by a hash of its text.

    Args:
        document: the text; white space around it does not count.
        fraction: expected share of the documents that is held out, 0 to 1.
    """
    text = document.strip().encode()
    digest = hashlib.blake2b(text, digest_size=8, person=b"heldout")
    return int.from_bytes(digest.digest(), "big") < fraction * 2**64


@dataclass
class Corpus:
    """A source of documents; every iteration is a fresh pass in the same order.

    Attributes:
        source: which corpus, see the head of this file.
        text_field: the field of .jsonl records, column of tables and Parquet files or
            feature of a TFDS data set that holds the text. A null, or NaN, is no
            document.
        document_boundary: "blank_line": blank lines part the documents of a .txt file;
            "file": a .txt file is one document; "paragraph": as "blank_line", and blank
            lines part records as well (``tfds:tiny_shakespeare`` is a single record);
            "line": a line is a document, in records as well.
        fraction_read: how far the current pass has come, 0 to 1, by bytes of the input
            files or by records.
        empty: records without text that the current pass has skipped.

    Iterating yields non-empty strings, without blank lines before and white space after
    the text; the first line keeps its indentation.

    Raises:
        UserError: at the latest when the culprit is reached: a file that is missing,
            empty, damaged or not UTF-8, a record without the field, a document longer
            than memory should hold, a data set that does not exist or cannot be
            fetched.
    """

    source: str
    text_field: str
    document_boundary: str
    fraction_read: float = field(default=0.0, init=False)
    empty: int = field(default=0, init=False)

    def __post_init__(self):
        if self.document_boundary not in BOUNDARIES:
            raise UserError(
                f"document_boundary is {self.document_boundary!r}; "
                f"it must be one of {', '.join(BOUNDARIES)}"
            )

    def __iter__(self) -> Iterator[str]:
        self.fraction_read, self.empty = 0.0, 0
        for text, place, fraction in self._texts():
            self.fraction_read = fraction
            self.empty += not text or text.isspace()
            for part in self._parts(text):
                document = LEADING_LINES.sub("", part).rstrip()
                check_length(len(document), place, self.document_boundary)
                if document:
                    yield document
        self.fraction_read = 1.0

    def _parts(self, text: str) -> list[str]:
        if self.document_boundary == "line":
            return text.split("\n")
        if self.document_boundary == "paragraph":
            return re.split(r"\n\s*\n", text)
        return [text]

    def _texts(self) -> Iterator[tuple[str, str, float]]:
        """Texts as they are stored, their places, and the fraction of the input behind
        each."""
        if self.source == "pydoc_topics":
            topics = docstrings.pydoc_topics()
            for number, topic in enumerate(topics, 1):
                yield topic, f"topic {number}", number / len(topics)
        elif self.source.startswith("tfds:"):
            builder, split = self._tfds()
            for fields, place, fraction in records.read_tfds(builder, split):
                yield _text_of(fields, self.text_field, place), place, fraction
        elif self.source == "python_docs":
            yield from _file_texts(
                [docstrings.corpus_file()], self.text_field, "blank_line"
            )
        else:
            paths = _matching_files(self.source)
            yield from _file_texts(paths, self.text_field, self.document_boundary)

    def _tfds(self) -> tuple[Any, str]:
        builder = records.tfds_builder(self.source.removeprefix("tfds:"))
        return builder, "train" if "train" in builder.info.splits else "all"

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the input, as JSON; equal fingerprints mean equal documents.

        Files count by their content, and by what `source` calls them.
        """
        identity: dict[str, Any] = {
            "source": self.source,
            "text_field": self.text_field,
            "document_boundary": self.document_boundary,
        }
        if self.source == "pydoc_topics":
            content = "\n\n".join(docstrings.pydoc_topics()).encode()
            return identity | {"digest": cache.digest(content)}
        if self.source == "python_docs":
            (digest,) = cache.file_digests([docstrings.corpus_file()])
            return identity | {"digest": digest}
        if self.source.startswith("tfds:"):
            builder, split = self._tfds()
            identity |= {"dataset": builder.info.full_name, "split": split}
            paths = sorted(map(Path, builder.info.splits[split].filepaths))
            names = [path.name for path in paths]
        else:
            paths = _matching_files(self.source)
            names = [*map(str, paths)]
        files = dict(zip(names, cache.file_digests(paths), strict=True))
        whole = cache.digest(json.dumps(files).encode())
        return identity | {"digest": whole, "files": files}


def check_length(characters: int, place: str, document_boundary: str) -> None:
    """UserError where a document, or what there is of it, is longer than allowed."""
    if characters > DOCUMENT_CHARACTERS:
        raise UserError(
            f"{place}: a document of more than {DOCUMENT_CHARACTERS:,} characters with "
            f"data.document_boundary={document_boundary!r}. Part the documents, or "
            "choose 'line' (a line is a document) or 'paragraph'"
        )


# Local files


def _matching_files(source: str) -> list[Path]:
    """The files that a path, glob or comma-separated list of these names."""
    whole = Path(source).expanduser()
    patterns = [source] if whole.is_file() else source.split(",")
    paths: dict[Path, None] = {}
    for pattern in filter(None, map(str.strip, patterns)):
        expanded = os.path.expanduser(pattern)
        if Path(expanded).is_dir():
            raise UserError(
                f"corpus {pattern!r} is a folder; name the files in it, "
                f"for example {os.path.join(pattern, '*.txt')!r}"
            )
        found = [expanded] if Path(expanded).is_file() else []
        found = found or sorted(glob.glob(expanded, recursive=True))
        files = [Path(name) for name in found if Path(name).is_file()]
        if not files:
            raise UserError(
                f"corpus {pattern!r}: no such file, and no file matches it as a glob "
                f"(in {Path.cwd()}); a corpus is {', '.join(EMBEDDED)}, "
                "tfds:NAME, or files"
            )
        paths.update(dict.fromkeys(files))
    if not paths:
        raise UserError(f"corpus {source!r} names no file")
    for path in paths:
        records.format_of(path, SUFFIXES)
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; remove it or fill it")
    return list(paths)


def _file_texts(
    paths: list[Path], text_field: str, document_boundary: str
) -> Iterator[tuple[str, str, float]]:
    sizes = [path.stat().st_size for path in paths]
    done = 0
    for path, size in zip(paths, sizes, strict=True):
        suffix = records.format_of(path, SUFFIXES)
        if suffix == ".txt":
            texts = _plain_texts(path, document_boundary)
        else:
            texts = (
                (_text_of(fields, text_field, place), place, share)
                for fields, place, share in records.read_file(path, suffix, text_field)
            )
        holds_text = False
        for text, place, share in texts:
            holds_text = holds_text or bool(text.strip())
            yield text, place, (done + share * size) / sum(sizes)
        if not holds_text:
            raise UserError(f"{path} holds no text; remove it or fill it")
        done += size


def _plain_texts(
    path: Path, document_boundary: str
) -> Iterator[tuple[str, str, float]]:
    lines: list[str] = []
    size, first, share = 0, 1, 0.0
    for number, line, share in records.numbered_lines(path):
        if document_boundary == "line":
            if line.strip():
                yield line, f"{path}, line {number}", share
        elif line.strip() or document_boundary == "file":
            first = first if lines else number
            lines.append(line)
            size += len(line) + 1
            check_length(size, f"{path}, line {first}", document_boundary)
        elif lines:
            yield "\n".join(lines), f"{path}, line {first}", share
            lines, size = [], 0
    if lines:
        yield "\n".join(lines), f"{path}, line {first}", share


def _text_of(fields: dict[str, Any], text_field: str, place: str) -> str:
    if text_field not in fields:
        raise UserError(
            f"{place}: no field {text_field!r}, the fields there are "
            f"{', '.join(map(repr, fields))}; set text_field to the one with the text"
        )
    value = fields[text_field]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"{place}: field {text_field!r}"
            raise records.not_utf8(what, value) from error
    if not isinstance(value, str):
        raise UserError(
            f"{place}: field {text_field!r} holds a {type(value).__name__} "
            f"({str(value)[:40]}) where text is expected"
        )
    return value
