"""Corpora: every format, the embedded text, TFDS, and what bad input gets."""

import bz2
import gzip
import json
import lzma
import os
import platform
import random
import socket
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import requests
import tensorflow_datasets as tfds
import zstandard
from tensorflow_datasets.core.download.util import DownloadError

from data import cache, corpora, docstrings
from data.corpora import Corpus, is_heldout
from errors import UserError

TEXT = "First line.\nsecond 한국어\n\n \t\nThird é.\n\n\nLast without an end"
DOCUMENTS = ["First line.\nsecond 한국어", "Third é.", "Last without an end"]


def corpus(source, text_field="text", document_boundary="blank_line") -> Corpus:
    return Corpus(str(source), text_field, document_boundary)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(content))
    return path


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("suffix", [".txt", *(f".txt{end}" for end in COMPRESS)])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_text_files(tmp_path, suffix, line_end):
    content = "\ufeff" + TEXT.replace("\n", line_end)
    path = write(tmp_path / f"a{suffix}", content.encode())
    assert list(corpus(path)) == DOCUMENTS
    assert list(corpus(path, document_boundary="file")) == [TEXT]
    lines = ["First line.", "second 한국어", "Third é.", "Last without an end"]
    assert list(corpus(path, document_boundary="line")) == lines


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines(tmp_path, suffix):
    records = [{"body": TEXT}, {"body": None}, {"body": "  "}, {"body": "x", "n": 1}]
    lines = "\n\n".join(json.dumps(record) for record in records)
    path = write(tmp_path / f"a{suffix}", lines.encode())
    source = corpus(path, "body")
    assert list(source) == [TEXT, "x"]
    assert source.empty == 2
    assert list(corpus(path, "body", "paragraph")) == [*DOCUMENTS, "x"]
    assert len(list(corpus(path, "body", "line"))) == 5


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".tsv.zst"])
def test_tables(tmp_path, suffix):
    """Also fields longer than the library of .csv lets through by itself."""
    long = "a long text " * 20_000
    comma = "," if "csv" in suffix else "\t"
    quote = '"' if "csv" in suffix else ""
    lines = [["n", "body"], ["1", f"{quote}{long}{quote}"], ["2", ""], ["3", "x"]]
    content = "\n".join(map(comma.join, lines))
    path = write(tmp_path / f"a{suffix}", content.encode())
    source = corpus(path, "body")
    assert list(source) == [long.strip(), "x"]
    assert source.empty == 1
    with pytest.raises(UserError, match=r"line 2: no field 'text', .* 'n', 'body'"):
        list(corpus(path))


def test_parquet_over_several_row_groups(tmp_path):
    texts = [f"text {i}" for i in range(1000)]
    table = pyarrow.table({"n": list(range(1000)), "body": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert list(corpus(tmp_path / "a.parquet", "body")) == texts
    with pytest.raises(UserError, match=r"no field 'text', the fields .* 'n', 'body'"):
        list(corpus(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match=r"row 1: field 'n' holds a int \(0\)"):
        list(corpus(tmp_path / "a.parquet", "n"))


@pytest.mark.parametrize("boundary", corpora.BOUNDARIES)
def test_the_first_line_keeps_its_indentation(tmp_path, boundary):
    code = "    def f():\n        return"
    path = write(tmp_path / "a.txt", f"\n \t\n{code}  \n\n".encode())
    record = write(
        tmp_path / "a.jsonl", json.dumps({"text": f"\r\n{code}\n "}).encode()
    )
    expected = code.split("\n") if boundary == "line" else [code]
    assert list(corpus(path, document_boundary=boundary)) == expected
    assert list(corpus(record, document_boundary=boundary)) == expected
    # Nor does what is around a text move it to the other side.
    held = [is_heldout(f"  document {i}\n", 0.05) for i in range(500)]
    assert held == [is_heldout(f"document {i}", 0.05) for i in range(500)]


def test_missing_numbers_where_text_should_be_are_no_documents(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": NaN}\n{"text": "a"}\n')
    source = corpus(path)
    assert list(source) == ["a"] and source.empty == 1


@pytest.mark.parametrize("encoding", ["cp949", "utf-16"])
def test_encodings_are_guessed_from_whole_characters(tmp_path, encoding):
    for before in ("", "x"):  # cuts a character of two bytes at one end or the other
        path = write(tmp_path / "a.txt", (before + KOREAN * 300).encode(encoding))
        with pytest.raises(UserError, match=f"if it is {encoding}, as it seems, "):
            list(corpus(path))


def test_globs_are_sorted_and_a_file_counts_once(tmp_path):
    for name in ("b", "a", "c,d"):
        write(tmp_path / f"{name}.txt", name.encode())
    assert list(corpus(tmp_path / "*.txt")) == ["a", "b", "c,d"]
    assert list(corpus(f"{tmp_path}/b.txt, {tmp_path}/?.txt")) == ["b", "a"]
    assert list(corpus(tmp_path / "c,d.txt")) == ["c,d"]


# The same in each process that collects the tests.
NOISE = random.Random(0).randbytes(9999).hex().encode()
KOREAN = (
    "이 영화는 정말 재미있었다. 배우들의 연기가 훌륭했고 음악도 좋았다.\n"
    "다음에 또 보고 싶다.\n"
)
LONG_KOREAN = "\n".join(
    ["x" * n + KOREAN for n in range(40)]
)  # more than is guessed of
CUT_SHORT = gzip.compress(NOISE, mtime=0)[:5000]
PARQUET = b"PAR1" + NOISE[:500] + b"PAR1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b" \n\n", "a.txt holds no text"),
        (
            "a.txt",
            "ok\nsch\u00f6n".encode("latin1"),
            r"a.txt, line 2: .*0xf6 at column 4",
        ),
        ("a.txt", KOREAN.encode("cp949"), "line 1: not UTF-8 .*'이 영화.* -f cp949 -t"),
        ("a.txt", KOREAN.encode("utf-16"), "line 1: .*'이 영화.* iconv -f utf-16 -t"),
        ("a.txt", "plain\n".encode("utf-16-le"), "line 1: .*NULs.* -f utf-16-le -t"),
        ("a.txt", b"id\n\xff", "line 2: not UTF-8 .*convert it to UTF-8 first$"),
        ("a.docx", b"x", "a.docx: the suffix .* .jsonl .* also with .gz .bz2 .xz .zst"),
        ("a.parquet.gz", b"x", "a.parquet.gz: the suffix"),
        ("a.txt.gz", CUT_SHORT, "a.txt.gz is damaged"),
        ("a.txt.gz", b"plain text", "a.txt.gz is damaged"),
        ("a.txt.bz2", b"plain text", "a.txt.bz2 is damaged"),
        ("a.txt.xz", b"plain text", "a.txt.xz is damaged"),
        ("a.txt.zst", b"plain text", "a.txt.zst is damaged"),
        ("a.parquet", b"plain text, long enough", "a.parquet is not Parquet"),
        ("a.parquet", PARQUET, "a.parquet is not Parquet, or damaged"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'\n{"b": 1, "c": 2}', "line 2: no field 'text', .* 'b', 'c'"),
        ("a.jsonl", b'{"text": ["a"]}', "line 1: field 'text' holds a list"),
        ("a.jsonl", b'{"text": "a\\ud800"}', "line 1: half a character"),
        ("a.jsonl", b'["a"]', "line 1: a list where a JSON object"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(corpus(tmp_path / name))


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\*.txt': no such file"):
        list(corpus(tmp_path / "nothing*.txt"))
    with pytest.raises(UserError, match=r"is a folder; .*\*\.txt"):
        corpus(tmp_path).fingerprint()
    with pytest.raises(UserError, match=r"document_boundary is 'page'; .* paragraph"):
        corpus("a.txt", document_boundary="page")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_read_to_their_end(tmp_path, suffix):
    """Several members in one file; each cut is found, wherever it falls."""
    parts = [*map(COMPRESS[suffix], (b"a b\n\n" * 9, b"", b"c"))]
    whole = b"".join(parts)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(whole)
    assert list(corpus(path)) == ["a b"] * 9 + ["c"]
    ends = {len(parts[0]), len(parts[0] + parts[1]), len(whole)}
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        if size in ends:  # what is left is a whole file
            assert list(corpus(path)) == ["a b"] * 9
        else:
            with pytest.raises(UserError, match="damaged or cut short"):
                list(corpus(path))
    for end in ends:  # damage at the head of what follows, which is not the end
        path.write_bytes(whole[:end] + b"?" + whole[end + 1 :])
        with pytest.raises(UserError, match="damaged or cut short"):
            list(corpus(path))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_beyond_a_buffer(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    lines = [f"line {number} {number * 7919}" for number in range(40_000)]
    halves = ("\n".join(lines[:15_000]) + "\n", "\n".join(lines[15_000:]))
    whole = b"".join(COMPRESS[suffix](half.encode()) for half in halves)
    path.write_bytes(whole)
    assert list(corpus(path, document_boundary="line")) == lines
    for size in (len(whole) // 5, len(whole) * 4 // 5):  # in the first, in the last
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged or cut short"):
            list(corpus(path, document_boundary="line"))


def test_a_gzip_file_may_be_filled_up_with_zeros(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a") + bytes(512))
    assert list(corpus(path)) == ["a"]


def test_damaged_pages_of_parquet_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"text {number}" for number in range(9_000)]})
    pyarrow.parquet.write_table(table, path)
    content = bytearray(path.read_bytes())
    content[100:9_000] = bytes(8_900)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.parquet is not Parquet, or damaged"):
        list(corpus(path))


@pytest.mark.parametrize("boundary", ["blank_line", "file"])
def test_documents_beyond_a_bound_are_refused(tmp_path, monkeypatch, boundary):
    monkeypatch.setattr(corpora, "DOCUMENT_CHARACTERS", 1_000)
    path = write(tmp_path / "a.txt", b"\n" + b"one line of many\n" * 100)
    match = f"a.txt, line [12]: a document of more than 1,000 .*'{boundary}'.* 'line'"
    with pytest.raises(UserError, match=match):
        list(corpus(path, document_boundary=boundary))
    assert len(list(corpus(path, document_boundary="line"))) == 100
    record = write(tmp_path / "a.jsonl", json.dumps({"text": "x " * 600}).encode())
    with pytest.raises(UserError, match=r"a.jsonl, line 1: a document of more than"):
        list(corpus(record, document_boundary=boundary))


def test_a_long_compressed_file_is_streamed(tmp_path):
    document = "A line of prose that is repeated many times over.\n" * 20 + "\n"
    path = write(tmp_path / "a.txt.gz", document.encode() * 8_000)  # 8 MB of text
    tracemalloc.start()
    count = sum(1 for _ in corpus(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8_000
    assert peak < 1e6


def test_progress_starts_anew_with_every_pass(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.txt", b"some words\n\n" * 50_000)
    source = corpus(tmp_path / "*.txt")
    for _ in range(2):
        seen = [source.fraction_read for _ in source]
        assert seen == sorted(seen)
        assert seen[0] < 0.2
        assert 0.4 < seen[len(seen) // 2] < 0.8
        assert source.fraction_read == 1.0


def test_fingerprint_follows_the_content(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    for name in "ab":
        write(tmp_path / f"{name}.txt", b"text")
    source = tmp_path / "?.txt"
    before = corpus(source).fingerprint()
    assert json.loads(json.dumps(before)) == before
    assert before["files"].keys() == {f"{tmp_path}/{name}.txt" for name in "ab"}
    (tmp_path / "b.txt").touch()
    assert corpus(source).fingerprint() == before
    for time in (1, 10**18):  # remembered, and too young to be
        write(tmp_path / "b.txt", b"test")
        os.utime(tmp_path / "b.txt", ns=(0, time))
        changed = corpus(source).fingerprint()
        assert changed["digest"] != before["digest"]
        differing = changed["files"].items() - before["files"].items()
        assert [name for name, _ in differing] == [f"{tmp_path}/b.txt"]
    assert corpus(source, document_boundary="file").fingerprint() != before


def test_digests_are_remembered_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.txt", b"text")
    os.utime(path, ns=(0, 5))
    first = cache.file_digests([path])
    assert first == [cache.digest(b"text")]
    path.write_bytes(b"test")
    os.utime(path, ns=(0, 5))  # nothing that could be seen
    assert cache.file_digests([path]) == first
    os.utime(path, ns=(0, 6))
    assert cache.file_digests([path]) == [cache.digest(b"test")]
    path.write_bytes(b"best")  # just now: may change again before the clock does
    assert cache.file_digests([path]) == [cache.digest(b"best")]
    state = path.stat()
    path.write_bytes(b"rest")
    os.utime(path, ns=(0, state.st_mtime_ns))
    assert cache.file_digests([path]) == [cache.digest(b"rest")]


def test_held_out_by_text_alone():
    documents = [f"document {i}" for i in range(20_000)]
    held = {text for text in documents if is_heldout(text, 0.05)}
    assert 0.045 < len(held) / len(documents) < 0.055
    assert held < {text for text in documents if is_heldout(text, 0.1)}
    assert not any(is_heldout(text, 0.0) for text in documents)
    assert all(is_heldout(text, 1.0) for text in documents)
    # Literal, so that no later version moves documents across.
    assert sorted(held)[:2] == HELD_OUT


HELD_OUT = ["document 10005", "document 10032"]

DOCSTRING = """Return the **sum** of `values` along the given axis.

This wraps a line and names :class:`~package.Thing`, ``code`` and a
`link <https://example.org>`_ in the middle.

Parameters
----------
values : array_like
    The numbers that are to be added to each other.
axis: the axis along which they are added, or None
    for all of them.

Args:
  dtype (optional): The type of the result, which is that of the input if
    it is not given.
  out: array

>>> total([1, 2])
3 is the result that is printed here.

=====  =====
left   right
=====  =====

- the first of the items in a list that is long enough.
- short one.
"""


def test_prose_keeps_sentences_and_drops_the_rest():
    assert docstrings.prose(DOCSTRING).splitlines() == [
        "Return the sum of values along the given axis.",
        "This wraps a line and names package.Thing, code and a link in the middle.",
        "The numbers that are to be added to each other.",
        "the axis along which they are added, or None for all of them.",
        "The type of the result, which is that of the input if it is not given.",
        "the first of the items in a list that is long enough.",
    ]


def test_docstrings_in_source_order(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""The module says what it is for."""\n'
        "if True:\n"
        "    class A:\n"
        '        """The class says what it is for."""\n'
        "        async def f(self):\n"
        '            """The method says what it is for."""\n'
        'x = """This string is not a docstring at all."""\n'
    )
    expected = [f"The {name} says what it is for." for name in ("module", "class")]
    assert docstrings.docstrings(path) == [*expected, "The method says what it is for."]
    for broken in (b'"""a"""\nprint "python 2"\n', b'"""a\0b"""', b'"""\xff"""'):
        path.write_bytes(broken)
        assert docstrings.docstrings(path) == []


def test_topics_of_pydoc():
    documents = list(corpus("pydoc_topics"))
    assert len(documents) > 50
    assert sum(map(len, documents)) > 200_000
    assert any("statement is used to wrap the execution of" in d for d in documents)
    assert corpus("pydoc_topics").fingerprint() == corpus("pydoc_topics").fingerprint()


def test_python_docs_are_built_once(tmp_path, monkeypatch):
    root = Path(json.__file__).parent
    library = sorted(root.glob("*.py"))
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    monkeypatch.setattr(docstrings, "standard_library", lambda: library + library)
    monkeypatch.setattr(docstrings, "installed_dependencies", dict)
    documents = list(corpus("python_docs"))
    assert documents[0].startswith("JSON (JavaScript Object Notation)")
    assert documents[-1] == list(corpus("pydoc_topics"))[-1]
    paragraphs = "\n".join(documents).splitlines()
    assert len(paragraphs) == len(set(paragraphs))
    (cached,) = tmp_path.glob("*.txt")
    versions = cached.with_suffix(".packages.json")
    assert json.loads(versions.read_text()) == {"python": platform.python_version()}
    assert {*tmp_path.iterdir()} == {cached, versions}  # and no temporary file
    stamp = cached.stat().st_mtime_ns
    fingerprint = corpus("python_docs").fingerprint()
    assert list(corpus("python_docs")) == documents
    assert cached.stat().st_mtime_ns == stamp
    cached.unlink()
    assert corpus("python_docs").fingerprint() == fingerprint


def test_where_python_docs_come_from():
    library = docstrings.standard_library()
    names = {path.name for path in library}
    assert {"argparse.py", "typing.py"} <= names
    assert not any({"test", "tests", "site-packages"} & {*p.parts} for p in library)
    dependencies = docstrings.installed_dependencies()
    assert {"jax", "numpy", "scipy"} <= dependencies.keys()  # scipy: through jax
    assert "pytest" not in dependencies
    files = docstrings.distribution_files(dependencies["flax"])
    assert any(path.parts[-2:] == ("linen", "linear.py") for path in files)


# TensorFlow Datasets, without TensorFlow


@pytest.fixture(scope="module")
def poems(tmp_path_factory):
    """A data folder with a data set "tiny_poems", written as ArrayRecord."""
    folder = tmp_path_factory.mktemp("tfds")
    splits = {"train": ["봄날은 간다", "night\n\nand day"], "test": ["unseen"]}
    with tfds.core.registered.skip_registration():

        class TinyPoems(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {"text": tfds.features.Text(), "length": np.int64}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {name: self._generate_examples(name) for name in splits}

            def _generate_examples(self, name):
                for index, text in enumerate(splits[name]):
                    yield index, {"text": text, "length": len(text)}

        TinyPoems.name = "tiny_poems"
        builder = TinyPoems(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return folder


@pytest.fixture
def tfds_folder(poems, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(poems))
    return poems


def test_tfds_train_split_without_tensorflow(tfds_folder):
    source = corpus("tfds:tiny_poems")
    assert set(source) == {"봄날은 간다", "night\n\nand day"}
    assert list(source) == list(source)
    assert source.fraction_read == 1.0
    assert len(list(corpus("tfds:tiny_poems:1.0.0", "text", "paragraph"))) == 3
    fingerprint = source.fingerprint()
    assert fingerprint["dataset"] == "tiny_poems/1.0.0"
    assert fingerprint["split"] == "train"
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("name", "text_field", "message"),
    [
        ("tiny_poems", "body", "record 1: no field 'body', .* 'length', 'text'"),
        ("tiny_poems", "length", "field 'length' holds a int"),
        ("tiny_shakespear", "text", "did you mean tiny_shakespeare"),
        ("wikipedia/20230601.en", "text", "no network .*copy a prepared wikipedia/"),
        ("no_such_data_at_all", "text", "tfds build no_such_data_at_all"),
        ("tiny_poems:2.0.0", "text", "no data set 'tiny_poems:2.0.0'"),
        ("no good name!", "text", "'no good name!' cannot be used"),
    ],
)
def test_tfds_mistakes_are_named(tfds_folder, name, text_field, message):
    with pytest.raises(UserError, match=message):
        list(corpus(f"tfds:{name}", text_field))


def test_tfds_without_network_fails_at_once(tfds_folder, monkeypatch):
    def no_network(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(UserError, match=r"network .* raw.githubusercontent.com; run"):
        list(corpus("tfds:tiny_shakespeare"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (requests.ConnectionError("refused"), "could not be downloaded: refused; run"),
        (DownloadError("status 403"), "could not be downloaded: status 403; run"),
        (ModuleNotFoundError("no apache_beam"), "not installed .no apache_beam"),
    ],
)
def test_tfds_failing_downloads_are_explained(tfds_folder, monkeypatch, error, message):
    def fail(self):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [])
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=message):
        list(corpus("tfds:tiny_shakespeare"))


def test_tfds_in_another_file_format_is_refused(tfds_folder, tmp_path, monkeypatch):
    stored = json.loads(
        (tfds_folder / "tiny_poems/1.0.0/dataset_info.json").read_text()
    )
    folder = tmp_path / "tiny_poems" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(
        json.dumps({**stored, "fileFormat": "tfrecord"})
    )
    features = (tfds_folder / "tiny_poems/1.0.0/features.json").read_bytes()
    (folder / "features.json").write_bytes(features)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="convert_format"):
        list(corpus("tfds:tiny_poems"))
