"""Files and data sets as records: one reader a format, of corpora and labelled data.

The suffix decides (`READERS`):

- ``.jsonl``: a JSON object a line. ``.parquet``: a row a record.
- ``.tsv``: a line of column names, then a record a line; quotes mean nothing.
- ``.csv``: the same with commas; a quoted field may hold commas and line breaks.

All but Parquet may be compressed (`COMPRESSIONS`). ``tfds:NAME`` is a TensorFlow
Datasets data set stored as ArrayRecord, read without TensorFlow.
"""

import contextlib
import csv
import difflib
import functools
import gzip
import io
import json
import os
import re
import socket
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from errors import UserError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
GUESSED_BYTES = 1 << 14  # of which the encoding is guessed
TELLING_BYTES = 32  # beyond ASCII, at least
LINE_BYTES = 256 << 20  # of a longer line that no memory should have to hold
TFDS_RECORDS = 1024  # fetched at once

# Fields by name, the place for messages, and the share of the source behind it.
Row = tuple[dict[str, Any], str, float]


def read_file(path: Path, suffix: str, column: str | None = None) -> Iterator[Row]:
    """The records of a file whose `format_of` is one of `READERS`.

    Args:
        column: the only one that is asked for, where the format can leave out others.

    Raises:
        UserError: a damaged or malformed file (with the line).
    """
    return READERS[suffix](path, column)


def format_of(path: Path, known: Iterable[str]) -> str:
    """The suffix that tells the format of a file, less that of its compression.

    Raises:
        UserError: it is none of those known.
    """
    name = without_compression(path.name)
    for suffix in known:
        if name.endswith(suffix) and (name == path.name or suffix != ".parquet"):
            return suffix
    raise UserError(
        f"{path}: the suffix says nothing about the format; known are "
        f"{' '.join(known)}, all but .parquet also with {' '.join(COMPRESSIONS)}"
    )


def without_compression(name: str) -> str:
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name


# Lines


def numbered_lines(path: Path) -> Iterator[tuple[int, str, float]]:
    """Line number from 1, line without its end, the share of the file that is read.

    Raises:
        UserError: a file that is damaged or cut short, not UTF-8, or has no lines.
    """
    size = max(1, path.stat().st_size)
    with path.open("rb") as raw, _damages_named(path):
        stream = _decompressed(path, raw)
        share = 0.0
        lines = iter(functools.partial(stream.readline, LINE_BYTES), b"")
        for number, line in enumerate(lines, 1):
            if number % 64 == 1:  # asking costs as much as reading a line
                share = min(1.0, raw.tell() / size)
            try:
                text = line.decode("utf-8")
                # ASCII in UTF-16 is UTF-8 as well, every second character of it U+0000.
                is_text = number > 1 or 3 * line.count(0) <= len(line)
            except UnicodeDecodeError:
                is_text = False
            if not is_text:
                rest = stream.read(GUESSED_BYTES)
                raise not_utf8(f"{path}, line {number}", line, rest)
            if len(line) == LINE_BYTES:
                raise UserError(
                    f"{path}, line {number} has more than {LINE_BYTES >> 20} MiB: is "
                    "it text? Cut it into lines"
                )
            if number == 1:
                text = text.removeprefix("\ufeff")  # byte order mark of Windows editors
            yield number, text.rstrip("\r\n"), share


def not_utf8(place: str, text: bytes, rest: bytes = b"") -> UserError:
    """What to say of bytes that are not UTF-8, and of what follows them.

    Names the encoding that they seem to be in, and what they read in it, since such
    guesses go wrong.
    """
    import charset_normalizer  # a tenth of a second to import

    found = "NULs between its characters"
    try:
        text.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{text[error.start]:02x} at column {error.start + 1}"
    sample = text + rest
    if len(sample) > GUESSED_BYTES:  # a character cut in two would mislead
        sample = sample[:GUESSED_BYTES].rpartition(b"\n")[0]
    # Of a few letters among ASCII anything may be guessed.
    tells = 0 in sample or sum(byte > 127 for byte in sample) >= TELLING_BYTES
    guess = charset_normalizer.from_bytes(sample).best() if tells else None
    advice = "convert it to UTF-8 first"
    if guess and guess.encoding not in ("ascii", "utf_8"):
        name = guess.encoding.replace("_", "-")
        advice += (
            f"; if it is {name}, as it seems, it begins {str(guess)[:30]!r}, and "
            f"iconv -f {name} -t UTF-8 does it"
        )
    return UserError(f"{place}: not UTF-8 ({found}); {advice}")


@contextlib.contextmanager
def _damages_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{path} is damaged or cut short: {error}; copy it again, or check that "
            f"it really is {path.suffix}"
        ) from error


def _decompressed(path: Path, raw: BinaryIO) -> Any:
    """The plain bytes of a file that is open; their end only where they are whole."""
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 17)
    if path.suffix == ".zst":
        import pyarrow  # a third of a second; zstandard says nothing of a cut file

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), 1 << 17)
    if path.suffix == ".bz2":
        import bz2  # as lzma not part of every Python

        streams = _Streams(raw, bz2.BZ2Decompressor, OSError)
        return io.BufferedReader(streams, 1 << 17)
    if path.suffix == ".xz":
        import lzma

        streams = _Streams(raw, lzma.LZMADecompressor, lzma.LZMAError)
        return io.BufferedReader(streams, 1 << 17)
    return raw


class _Streams(io.RawIOBase):
    """Compressed streams one after the other, each of them whole.

    `bz2.open` and `lzma.open` take damage at the head of a later one for the end.
    """

    def __init__(
        self, raw: BinaryIO, decoder: Callable[[], Any], error: type[Exception]
    ):
        self.raw, self.new, self.error = raw, decoder, error
        self.decoder = decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        found = b""
        while not found:
            data, is_between = b"", self.decoder.eof
            if is_between or self.decoder.needs_input:
                left = self.decoder.unused_data if is_between else b""
                data = left or self.raw.read(1 << 17)
                if not data and is_between:
                    return 0
                if not data:
                    raise EOFError("it ends within a compressed stream")
                if is_between:
                    self.decoder = self.new()
            try:
                found = self.decoder.decompress(data, len(buffer))
            except self.error as error:
                raise OSError(str(error)) from error
        buffer[: len(found)] = found
        return len(found)


# Formats


def _json_rows(path: Path, _: str | None) -> Iterator[Row]:
    for number, line, share in numbered_lines(path):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        content = parsed(line, place)
        if not isinstance(content, dict):
            raise UserError(
                f"{place}: a {type(content).__name__} where a JSON object is expected, "
                'such as {"text": "..."}'
            )
        yield content, place, share


def parsed(text: str, place: str) -> Any:
    """The value of some JSON, whose strings are text throughout.

    Raises:
        UserError: it is not JSON, or spells half a surrogate pair.
    """
    try:
        content = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error})") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: half a character is no text ({error})") from error
    return content


def _parquet_rows(path: Path, column: str | None) -> Iterator[Row]:
    import pyarrow  # a third of a second to import
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            has_it = column in file.schema_arrow.names
            row, total = 0, file.metadata.num_rows
            for batch in file.iter_batches(256, columns=[column] if has_it else None):
                for content in batch.to_pylist():
                    row += 1
                    yield content, f"{path}, row {row}", row / total
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not Parquet, or damaged: {error}") from error


def _tsv_rows(path: Path, _: str | None) -> Iterator[Row]:
    lines = numbered_lines(path)
    return _table_rows(path, ((n, row.split("\t"), s) for n, row, s in lines if row))


def _csv_rows(path: Path, _: str | None) -> Iterator[Row]:
    return _table_rows(path, _csv_cells(path))


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str], float]]:
    """Rows with the number of the line they begin at."""
    csv.field_size_limit(LINE_BYTES)  # the library's own is 131,072 characters
    share, number = 0.0, 1

    def lines() -> Iterator[str]:
        nonlocal share
        for _, line, position in numbered_lines(path):
            share = position
            yield line + "\n"

    reader = csv.reader(lines(), strict=True)
    try:
        for row in reader:
            if row:
                yield number, row, share
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {number}: not CSV ({error}); a field with quotes, commas or "
            'line breaks stands in "double quotes", and a quote in it is written twice'
        ) from error


def _table_rows(
    path: Path, rows: Iterator[tuple[int, list[str], float]]
) -> Iterator[Row]:
    _, columns, _ = next(rows, (0, [], 0.0))
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise UserError(
            f"{path}, line 1: the column name {min(repeated)!r} stands there twice; "
            "the first line must name the columns"
        )
    for number, row, share in rows:
        if len(row) != len(columns):
            raise UserError(
                f"{path}, line {number}: {len(row)} fields, but the first line names "
                f"{len(columns)} columns ({', '.join(columns)})"
            )
        yield dict(zip(columns, row, strict=True)), f"{path}, line {number}", share


READERS = {
    ".jsonl": _json_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
}


# TensorFlow Datasets


def read_tfds(builder: Any, split: str) -> Iterator[Row]:
    """The records of a split, as TFDS holds them.

    Raises:
        ValueError, KeyError: the split is malformed, or unknown.
    """
    source = builder.as_data_source(split=split)
    total = len(source)
    for start in range(0, total, TFDS_RECORDS):
        stop = min(start + TFDS_RECORDS, total)
        for number, fields in enumerate(source.__getitems__(range(start, stop)), start):
            place = f"tfds:{builder.info.full_name}@{split}, record {number + 1}"
            yield fields, place, (number + 1) / total


def tfds_builder(name: str) -> Any:
    """The prepared data set, fetched if need be.

    Raises:
        UserError: it does not exist, or cannot be fetched or read.
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
    return builder


def _tfds_not_found(name: str, data_dir: str | None) -> str:
    import tensorflow_datasets as tfds

    stem = re.split("[/:]", name)[0]
    known = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(stem, known, n=3)
    suggestion = f"; did you mean {' or '.join(close)}?" if close else "."
    return (
        f"TFDS knows no data set {name!r} that can be built without TensorFlow, and "
        f"{data_dir or '~/tensorflow_datasets'} holds none of that name{suggestion} "
        "A data set whose code needs TensorFlow is prepared once "
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
