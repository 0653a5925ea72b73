"""Where the text comes from: an iterator of documents, read in constant memory.

A corpus is named by one string:

- ``python_docs``: the embedded default, needs no download. The docstrings of the
  standard library and of Foreword's installed dependencies, filtered to prose, and the
  topics of ``pydoc``. Built once and kept in `cache_folder()`.
- ``pydoc_topics``: those topics alone, about half a megabyte, in memory at once.
- ``tfds:NAME[/CONFIG][:VERSION]``: a TensorFlow Datasets data set stored as
  ArrayRecord, read without TensorFlow.
- anything else: a file, a glob, or several with commas between. The suffix decides:
  ``.txt``, ``.jsonl`` (each also ``.gz`` or ``.zst``), ``.parquet``.

Which documents are held out depends on their text alone (`is_heldout`), never on their
position, so that adding a file moves no document from one side to the other.
"""

import ast
import contextlib
import difflib
import functools
import gc
import glob
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import re
import socket
import sys
import sysconfig
import tomllib
import urllib.parse
import urllib.request
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import UserError

BOUNDARIES = ("blank_line", "file", "paragraph")
SUFFIXES = (
    *(".txt", ".txt.gz", ".txt.zst"),
    *(".jsonl", ".jsonl.gz", ".jsonl.zst"),
    ".parquet",
)


def cache_folder() -> Path:
    """``$FOREWORD_CACHE``, or ``~/.cache/foreword``; made when first written to."""
    if "FOREWORD_CACHE" in os.environ:
        return Path(os.environ["FOREWORD_CACHE"]).expanduser()
    return Path.home() / ".cache" / "foreword"


def is_heldout(document: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out part, by a hash of its text.

    Args:
        document: the text as a `Corpus` yields it.
        fraction: expected share of the documents that is held out, 0 to 1.
    """
    digest = hashlib.blake2b(document.encode(), digest_size=8, person=b"heldout")
    return int.from_bytes(digest.digest(), "big") < fraction * 2**64


@dataclass
class Corpus:
    """A source of documents; every iteration is a fresh pass in the same order.

    Attributes:
        source: which corpus, see the head of this file.
        text_field: the field of .jsonl records, column of Parquet files or feature of
            a TFDS data set that holds the text. A null counts as an empty document.
        document_boundary: "blank_line": blank lines part the documents of a .txt file;
            "file": a .txt file is one document; "paragraph": as "blank_line", and blank
            lines part records as well (``tfds:tiny_shakespeare`` is a single record).
        fraction_read: how far the current pass has come, 0 to 1, by bytes of the input
            files or by records.

    Iterating yields stripped, non-empty strings.

    Raises:
        UserError: at the latest when the culprit is reached: a file that is missing,
            empty, damaged or not UTF-8, a record without the field, a data set that
            does not exist or cannot be fetched.
    """

    source: str
    text_field: str
    document_boundary: str
    fraction_read: float = field(default=0.0, init=False)

    def __post_init__(self):
        if self.document_boundary not in BOUNDARIES:
            raise UserError(
                f"document_boundary is {self.document_boundary!r}; "
                f"it must be one of {', '.join(BOUNDARIES)}"
            )

    def __iter__(self) -> Iterator[str]:
        self.fraction_read = 0.0
        for text, fraction in self._records():
            self.fraction_read = fraction
            parts = (
                re.split(r"\n\s*\n", text)
                if self.document_boundary == "paragraph"
                else [text]
            )
            yield from filter(None, map(str.strip, parts))
        self.fraction_read = 1.0

    @functools.cached_property
    def _python_docs(self) -> Path:
        return _python_docs()  # looks at all packages each time

    def _records(self) -> Iterator[tuple[str, float]]:
        """Texts as they are stored, each with the fraction of the input behind it."""
        if self.source == "pydoc_topics":
            topics = _pydoc_topics()
            for index, topic in enumerate(topics):
                yield topic, (index + 1) / len(topics)
        elif self.source.startswith("tfds:"):
            yield from _tfds_records(self.source.removeprefix("tfds:"), self.text_field)
        elif self.source == "python_docs":
            yield from _file_records([self._python_docs], self.text_field, "blank_line")
        else:
            paths = _matching_files(self.source)
            yield from _file_records(paths, self.text_field, self.document_boundary)

    def fingerprint(self) -> dict:
        """What identifies the input, as JSON; equal fingerprints mean equal documents.

        Files count by name, size and time of change; the embedded corpora by content.
        """
        identity: dict[str, Any] = {
            "source": self.source,
            "text_field": self.text_field,
            "document_boundary": self.document_boundary,
        }
        if self.source == "pydoc_topics":
            content = "\n\n".join(_pydoc_topics()).encode()
            identity["content"] = hashlib.blake2b(content, digest_size=16).hexdigest()
        elif self.source == "python_docs":
            content = self._python_docs.read_bytes()
            identity["content"] = hashlib.blake2b(content, digest_size=16).hexdigest()
        elif self.source.startswith("tfds:"):
            builder, split = tfds_builder(self.source.removeprefix("tfds:"))
            identity["dataset"] = builder.info.full_name
            identity["split"] = split
            identity["bytes"] = builder.info.splits[split].num_bytes
        else:
            identity["files"] = [
                {
                    "name": path.name,
                    "size": path.stat().st_size,
                    "mtime_ns": path.stat().st_mtime_ns,
                }
                for path in _matching_files(self.source)
            ]
        return identity


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
                f"(in {Path.cwd()}); a corpus is python_docs, pydoc_topics, "
                "tfds:NAME, or files"
            )
        paths.update(dict.fromkeys(files))
    if not paths:
        raise UserError(f"corpus {source!r} names no file")
    for path in paths:
        if not path.name.endswith(tuple(SUFFIXES)):
            raise UserError(
                f"corpus file {path}: the suffix says nothing about the format; "
                f"known are {' '.join(SUFFIXES)}"
            )
        if path.stat().st_size == 0:
            raise UserError(f"corpus file {path} is empty; remove it or fill it")
    return list(paths)


def _file_records(
    paths: list[Path], text_field: str, document_boundary: str
) -> Iterator[tuple[str, float]]:
    total = sum(path.stat().st_size for path in paths)
    done = 0
    for path in paths:
        if path.suffix == ".parquet":
            records = _parquet_records(path, text_field)
        elif ".jsonl" in path.suffixes[-2:]:
            records = _json_records(path, text_field)
        else:
            records = _text_records(path, document_boundary)
        holds_text = False
        for text, position in records:
            holds_text = holds_text or bool(text.strip())
            yield text, min(1.0, (done + position) / total)
        if not holds_text:
            raise UserError(f"corpus file {path} holds no text; remove it or fill it")
        done += path.stat().st_size


@contextlib.contextmanager
def _decompressed(path: Path) -> Iterator[tuple[io.BufferedIOBase, io.BufferedReader]]:
    """The file's plain bytes, and the raw file, whose `tell` is the progress."""
    damages: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    with open(path, "rb") as raw:
        stream: Any = raw
        if path.suffix == ".gz":
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 17)
        elif path.suffix == ".zst":
            import zstandard  # rarely needed

            damages = (*damages, zstandard.ZstdError)
            decompressor = zstandard.ZstdDecompressor()
            stream = io.BufferedReader(
                decompressor.stream_reader(raw, read_across_frames=True), 1 << 17
            )
        try:
            yield stream, raw
        except damages as error:
            raise UserError(
                f"corpus file {path} is damaged or cut short: {error}; "
                f"copy it again, or check that it really is {path.suffix}"
            ) from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Line number from 1, line without its end, about how many bytes are read."""
    with _decompressed(path) as (stream, raw):
        position = 0
        for number, line in enumerate(stream, 1):
            if number % 64 == 0:  # asking costs as much as reading a line
                position = raw.tell()
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"corpus file {path}, line {number}: not UTF-8 "
                    f"(byte 0x{line[error.start]:02x} at column {error.start + 1}); "
                    "convert it first, e.g. iconv -f LATIN1 -t UTF-8"
                ) from error
            if number == 1:
                text = text.removeprefix("\ufeff")  # byte order mark of Windows editors
            yield number, text.rstrip("\r\n"), position


def _text_records(path: Path, document_boundary: str) -> Iterator[tuple[str, int]]:
    lines: list[str] = []
    position = 0
    for _, line, position in numbered_lines(path):  # used after the loop
        if line.strip() or document_boundary == "file":
            lines.append(line)
        elif lines:
            yield "\n".join(lines), position
            lines = []
    if lines:
        yield "\n".join(lines), position


def _json_records(path: Path, text_field: str) -> Iterator[tuple[str, int]]:
    for number, line, position in numbered_lines(path):
        if not line.strip():
            continue
        place = f"corpus file {path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(
                f"{place}: a {type(record).__name__} where a JSON object is expected, "
                f'such as {{"{text_field}": "..."}}'
            )
        yield _text_of(record, text_field, place), position


def _parquet_records(path: Path, text_field: str) -> Iterator[tuple[str, int]]:
    import pyarrow  # a third of a second to import
    import pyarrow.parquet

    size = path.stat().st_size
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"corpus file {path} is not Parquet: {error}") from error
    with file:
        columns = dict.fromkeys(file.schema_arrow.names)
        if text_field not in columns:
            _text_of(columns, text_field, f"corpus file {path}")
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=[text_field]):
            for record in batch.to_pylist():
                row += 1
                text = _text_of(record, text_field, f"corpus file {path}, row {row}")
                yield text, size * row // file.metadata.num_rows


def _text_of(record: dict, text_field: str, place: str) -> str:
    if text_field not in record:
        raise UserError(
            f"{place}: no field {text_field!r}, the fields there are "
            f"{', '.join(map(repr, record))}; set text_field to the one with the text"
        )
    value = record[text_field]
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{place}: field {text_field!r} is not UTF-8 text ({error})"
            ) from error
    if not isinstance(value, str):
        raise UserError(
            f"{place}: field {text_field!r} holds a {type(value).__name__} "
            f"({str(value)[:40]}) where text is expected"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
        raise UserError(
            f"{place}: field {text_field!r} is no text ({error})"
        ) from error
    return value


# TensorFlow Datasets


def _tfds_records(name: str, text_field: str) -> Iterator[tuple[str, float]]:
    builder, split = tfds_builder(name)
    source = builder.as_data_source(split=split)
    total = len(source)
    for start in range(0, total, 1024):
        stop = min(start + 1024, total)
        examples = source.__getitems__(range(start, stop))
        for index, example in enumerate(examples, start):
            place = f"TFDS data set {name!r}, split {split!r}, record {index + 1}"
            yield _text_of(example, text_field, place), (index + 1) / total


def tfds_builder(name: str) -> tuple[Any, str]:
    """The prepared data set, fetched if need be, and which split of it is read.

    That is "train" where there is one, so that published test splits stay unseen, and
    all splits together where there is none.
    """
    import requests  # what tensorflow_datasets downloads with
    import tensorflow_datasets as tfds  # a second to import
    from tensorflow_datasets.core.download.util import DownloadError

    # Read here, because tensorflow_datasets looks only once, when it is imported.
    data_dir = os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UserError(_tfds_not_found(name, data_dir)) from error
    except ValueError as error:  # a malformed name, an unknown config, another format
        reason = str(error).splitlines()[0].split('}": ')[-1].split(". Here")[0]
        raise UserError(
            f"TFDS data set {name!r} cannot be used: {reason.rstrip('.')}. A name is "
            "NAME[/CONFIG][:VERSION]; what is stored as TFRecord is converted with "
            "`tfds convert_format --out_file_format=array_record`"
        ) from error
    if not builder.is_prepared():
        remedy = (
            f"run once with a network, or copy a prepared {builder.info.full_name} "
            f"into {data_dir or '~/tensorflow_datasets'} (or set TFDS_DATA_DIR)"
        )
        _require_hosts(name, builder, remedy)
        try:
            builder.download_and_prepare()
        except (requests.RequestException, DownloadError) as error:
            raise UserError(
                f"TFDS data set {name!r} could not be downloaded: {error}; {remedy}"
            ) from error
        except ImportError as error:
            raise UserError(
                f"TFDS data set {name!r} cannot be prepared here, its code needs a "
                f"package that is not installed ({error}); prepare it elsewhere with "
                f"`tfds build {name} --file_format=array_record` and {remedy}"
            ) from error
    splits = builder.info.splits
    return builder, "train" if "train" in splits else "all"


def _tfds_not_found(name: str, data_dir: str | None) -> str:
    import tensorflow_datasets as tfds

    stem = re.split("[/:]", name)[0]
    known = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(stem, known, n=3)
    suggestion = f"; did you mean {' or '.join(close)}?" if close else "."
    return (
        f"TFDS knows no data set {name!r} that can be built without TensorFlow, and "
        f"{data_dir or '~/tensorflow_datasets'} holds none of that name{suggestion} "
        "A data set whose code needs TensorFlow (such as wikipedia) is prepared once "
        f"elsewhere: `pip install tensorflow tensorflow-datasets && tfds build {name} "
        "--file_format=array_record`, then copied there (or set TFDS_DATA_DIR)"
    )


def _require_hosts(name: str, builder: Any, remedy: str) -> None:
    """Fails at once when no host of the download resolves.

    tensorflow_datasets would try ten times for three minutes before it says so.
    """
    if urllib.request.getproxies():
        return  # then the proxy resolves names
    urls = builder.url_infos or {}
    hosts = sorted({urllib.parse.urlsplit(url).hostname or "" for url in urls} - {""})
    for host in hosts:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, 443)
            return
    if hosts:
        raise UserError(
            f"TFDS data set {name!r} is not prepared on this machine and there is no "
            f"network to fetch it from {', '.join(hosts)}; {remedy}"
        )


# The embedded corpus

# Part of the cache's name: to be raised whenever the filter below changes.
PROSE_VERSION = 1

PROMPT_OR_TABLE = re.compile(r"^\s*(>>>|\.\.\.( |$)|In \[|\$ |\.\. |[|+]|@|#)")
RULE = re.compile(r"^\s*([-=~^*#_`'\"+.:])\1{2,}[-=~^*#_`+ ]*$")
ITEM = re.compile(
    r"""^\s*(?:
        [-*•+]\s+                                  # bullet
      | \(?\d{1,2}[.)]\s+                          # numbered
      | :\w+[^:]*:\s*                              # :param x:
      | \*{0,2}[\w.`]+(?:\s\([^)]*\)|\s?\[[^]]*\])?:(?=\s)\s*   # name (type): ...
    )""",
    re.VERBOSE,
)
MARKUP: tuple[tuple[re.Pattern, str], ...] = (
    (re.compile(r":[\w:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`"), r"\1"),  # :class:`x`
    (re.compile(r"`([^`<]+?)\s*<[^>]*>`_{0,2}"), r"\1"),  # `text <link>`_
    (re.compile(r"\[([^]]+)\]\([^)]*\)"), r"\1"),  # [text](link)
    (re.compile(r"``(.+?)``|`([^`]+)`_{0,2}"), r"\1\2"),  # ``code``, `name`_
    (re.compile(r"\*\*(.+?)\*\*"), r"\1"),  # strong
    (re.compile(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1"),  # emphasis
    (re.compile(r"\s*\[[\d, ]+\]_"), ""),  # footnote
    (re.compile(r"\s+"), " "),
)
WORD = re.compile(r"^[\"'(\[]*[A-Za-z]+(?:['’-][A-Za-z]+)*[\"')\].,;:!?]*$")
FUNCTION_WORDS = re.compile(
    "a|an|the|of|to|in|is|are|be|was|for|on|by|with|as|at|from|that|this|it|its|if|or|and"
    "|not|when|which|will|can|may|must|into|than|but|has|have|no|you|we|they|used|does|do"
    "|all|any|each|only|should|use"
)


def prose(text: str) -> str:
    """The English prose of a docstring: a paragraph a line, the rest left out.

    Code, prompts, tables, headings and bare lists of names go; labels of parameters and
    light markup go, their descriptions stay. A paragraph stays when it has at least
    five words, when seven in ten of its tokens are plain words and one in eight is a
    function word, and when it ends in a full stop or the like (a colon before code
    counts).
    """
    paragraphs = (_without_markup(item) for item in _items(text))
    return "\n".join(filter(_is_prose, paragraphs))


def _items(text: str) -> Iterator[str]:
    """Paragraphs and list items, each with its lines joined; code blocks left out."""
    for block in re.split(r"\n\s*\n", text.expandtabs()):
        lines: list[str] = []
        hanging = False  # the item began with a label, its next lines are indented
        indent = 0
        for line in block.splitlines():
            if RULE.match(line):  # the line above it was a heading
                lines = []
                continue
            if PROMPT_OR_TABLE.match(line):
                lines = []
                break  # what follows in this block is its output
            here = len(line) - len(line.lstrip())
            label = ITEM.match(line)
            if label or here < indent or (here > indent and not hanging):
                if lines:
                    yield " ".join(lines)
                lines = []
                hanging = bool(label)
            elif here > indent:
                hanging = False
            indent = here
            lines.append(line[label.end() :] if label else line.strip())
        if lines:
            yield " ".join(lines)


def _without_markup(paragraph: str) -> str:
    for pattern, replacement in MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


def _is_prose(paragraph: str) -> bool:
    tokens = paragraph.split()
    if len(tokens) < 5 or not re.search(r"[.!?:;][\"')\]]*$", paragraph):
        return False
    words = [token for token in tokens if WORD.match(token)]
    functions = sum(
        bool(FUNCTION_WORDS.fullmatch(word.strip("\"'()[].,;:!?").lower()))
        for word in words
    )
    return len(words) >= 0.7 * len(tokens) and functions * 8 >= len(tokens)


@functools.cache
def _pydoc_topics() -> list[str]:
    from pydoc_data.topics import topics  # half a megabyte of text

    return list(filter(None, (prose(topics[name]) for name in sorted(topics))))


def docstrings(path: Path) -> list[str]:
    """The prose of every docstring of a Python file, in source order."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates and code for another Python
        return []
    return [prose(docstring) for docstring in _docstrings_below(tree)]


def _docstrings_below(node: ast.AST) -> Iterator[str]:
    if isinstance(
        node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    ):
        yield ast.get_docstring(node) or ""
    # Only bodies (also of if, with, try): expressions hold no definitions.
    for child in getattr(node, "body", []):
        if isinstance(getattr(child, "body", None), list):
            yield from _docstrings_below(child)


def _is_test(path: Path) -> bool:
    return not {"test", "tests", "idle_test"}.isdisjoint(path.parts) or bool(
        re.search(r"^(test_.*|.*_test|conftest)\.py$", path.name)
    )


def standard_library() -> list[Path]:
    """Its Python files in the order of their paths, tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "__pycache__"}
    relative = (path.relative_to(root) for path in root.rglob("*.py"))
    return [
        root / path
        for path in sorted(relative)
        if left_out.isdisjoint(path.parts) and not _is_test(path)
    ]


def installed_dependencies() -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that Foreword needs, directly or not, by name.

    Whatever else is installed stays out: the corpus is to be the same on every machine
    with the same versions, and to be ready soon where hundreds of packages are.
    """
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    waiting = list(tomllib.loads(pyproject.read_text())["project"]["dependencies"])
    found: dict[str, importlib.metadata.Distribution] = {}
    while waiting:
        requirement = waiting.pop()
        stem = re.match(r"[\w.-]+", requirement)
        assert stem, requirement
        name = re.sub(r"[-_.]+", "-", stem[0]).lower()
        if name in found or re.search(r"\bextra\s*==", requirement):
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.distribution(name)
            waiting += found[name].requires or []
    return dict(sorted(found.items()))


def distribution_files(distribution: importlib.metadata.Distribution) -> list[Path]:
    """Its Python files in the order of their paths, tests left out."""
    files = (Path(file) for file in distribution.files or [])
    return [
        path
        for file in sorted(files)
        if file.suffix == ".py" and ".." not in file.parts and not _is_test(file)
        if (path := Path(str(distribution.locate_file(str(file))))).is_file()
    ]


def environment_digest() -> str:
    """Changes with Python, the installed dependencies and the filter to prose."""
    versions = [
        f"{name}=={found.version}" for name, found in installed_dependencies().items()
    ]
    environment = [f"prose {PROSE_VERSION}", f"python {sys.version}", *versions]
    return hashlib.blake2b("\n".join(environment).encode(), digest_size=8).hexdigest()


def _python_docs() -> Path:
    """The cached text of `python_docs`, built (20 s) if this environment has none yet.

    A document is a module: the prose of its docstrings, a paragraph a line. A paragraph
    that came before anywhere is dropped, so no boilerplate is learnt by heart and the
    held-out documents share none with the others. Ordered by distribution and path.
    """
    import tqdm  # the other sources need none

    path = cache_folder() / f"python_docs-{environment_digest()}.txt"
    if path.is_file():
        return path
    dependencies = installed_dependencies()
    files = standard_library()
    for distribution in dependencies.values():
        files += distribution_files(distribution)
    seen: set[str] = set()
    with no_garbage_collection():
        progress = tqdm.tqdm(
            files, "collecting docstrings, once", unit=" files", disable=None
        )
        documents = [_unseen(docstrings(file), seen) for file in progress]
    documents += [_unseen([topic], seen) for topic in _pydoc_topics()]
    documents = list(filter(None, documents))
    text = "\n\n".join(documents) + "\n"
    write_atomically(path, text)
    print(f"Wrote {len(documents):,} documents, {len(text) / 1e6:.1f} MB: {path}")
    return path


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Syntax trees hold no cycles, and looking for some takes most of the parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _unseen(texts: Iterable[str], seen: set[str]) -> str:
    """The paragraphs of the texts that are not in `seen`, which gains them."""
    kept = []
    for paragraph in "\n".join(texts).splitlines():
        if paragraph and paragraph not in seen:
            seen.add(paragraph)
            kept.append(paragraph)
    return "\n".join(kept)


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:  # also on a full disk or Ctrl-C
        unfinished.unlink(missing_ok=True)
