"""Labelled data: the readers, and bad files."""

import bz2
import collections
import gzip
import json
import lzma
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
import zstandard
from task_examples import encode, label_names, letters, spans

from configs.finetune import glue
from data import docstrings, labelled, records
from errors import UserError
from tasks import KINDS, predictions, splits
from tasks.encoding import Task, text_of
from tasks.lines import line_record


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters(tmp_path_factory.mktemp("tokenizer"))


# Readers

TABLE = [
    {"text": 'a "b" c', "label": "x"},
    {"text": "봄날, 간다", "label": "y"},
]


def write_table(path):
    name = path.name
    tsv = "text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in TABLE)
    if ".tsv" in name:
        content = tsv.encode()
    elif ".csv" in name:
        content = 'text,label\r\n"a ""b"" c",x\r\n\r\n"봄날, 간다",y\r\n'.encode()
    else:
        content = "\n\n".join(map(json.dumps, TABLE)).encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    elif name.endswith(".bz2"):
        content = bz2.compress(content)
    elif name.endswith(".xz"):
        content = lzma.compress(content)
    elif name.endswith(".zst"):
        content = zstandard.compress(content)
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TABLE), path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    "t.tsv t.tsv.gz t.tsv.xz t.csv t.csv.zst t.jsonl t.jsonl.bz2 t.parquet".split(),
)
def test_tables_in_every_format(tmp_path, name):
    path = tmp_path / name
    write_table(path)
    found = labelled.read(str(path))
    assert [record.fields for record in found] == TABLE
    last = {"t.tsv": "line 3", "t.csv": "line 4", "t.jsonl": "line 3"}
    stem = records.without_compression(name)
    assert found[1].place == f"{path}, {last.get(stem, 'row 2')}"


def test_csv_fields_hold_line_breaks(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('text,label\n"one\ntwo",x\nthree,y\n')
    first, second = labelled.read(str(path))
    assert first.fields["text"] == "one\ntwo"
    assert (first.place, second.place) == (f"{path}, line 2", f"{path}, line 4")


def test_json_values_become_text(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1, "b": 2.5, "c": null, "d": ["x", 3], "e": {"f": [0]}}')
    (record,) = labelled.read(str(path))
    fields = {"a": "1", "b": "2.5", "c": "", "d": ["x", "3"], "e": {"f": ["0"]}}
    assert record.fields == fields


def test_a_missing_value_makes_no_other_labels(tmp_path):
    """What pandas writes of a column of whole numbers of which one is missing."""
    values = [1.0, 0.0, -2.0, 2.5, 1e300, float("nan"), None]
    expected = ["1", "0", "-2", "2.5", "1e+300", "", ""]
    lines = [json.dumps({"label": value}) for value in values]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    table = pyarrow.table({"label": pyarrow.array(values, pyarrow.float64())})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        found = labelled.read(str(tmp_path / name))
        assert [record.fields["label"] for record in found] == expected


def test_white_space_makes_no_other_labels():
    task = Task("classification", ("text",), "label", None)
    names = ["good", "good ", "\u00a0bad\t", "bad"]
    records = [labelled.Record({"text": "a", "label": n}, "") for n in names]
    assert splits.label_names(KINDS["classification"], records, task) == ("bad", "good")
    tags = [labelled.Record({"label": ["O ", "O"]}, "")]
    assert splits.label_names(KINDS["tagging"], tags, task) == ("O",)


def test_bytes_that_are_no_text_are_refused_as_such(tmp_path):
    path = tmp_path / "t.parquet"
    column = pyarrow.array(["\ubd04".encode(), "\ubd04".encode("cp949")])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    right, wrong = labelled.read(str(path))
    assert text_of(right, "text") == "\ubd04"
    with pytest.raises(UserError, match=r"row 2: .*holds a dict \(.'bytes': '2'"):
        text_of(wrong, "text")


def test_conll(tmp_path):
    path = tmp_path / "t.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VBZ O\n\n \nBonn NNP B-LOC"
    )
    first, second = labelled.read(str(path))
    assert first.fields == {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}
    assert second.fields == {"words": ["Bonn"], "tags": ["B-LOC"]}
    assert second.place == f"{path}, sentence of line 7"


@pytest.mark.parametrize(
    ("lines", "words", "tags"),
    [
        # MultiCoNER; its comments have as many columns as its words.
        (["# id s1 domain=en", "Bonn _ _ B-LOC"], ["Bonn"], ["B-LOC"]),
        # GermEval, by tabs.
        (["#\tn-tv.de [2005]", "1\tBonn\tO\tO", "2\tab\tO\tO"], ["1", "2"], ["O"] * 2),
        # CoNLL-U's comments.
        (["# newdoc", "# text = Bonn", "Bonn\tB-LOC"], ["Bonn"], ["B-LOC"]),
        # A word that looks like one.
        (["# O", "1 O", "# O", "#tag O"], ["#", "1", "#", "#tag"], ["O"] * 4),
        (["#\tO", "1\tO"], ["#", "1"], ["O", "O"]),
        # A no-break space parts no words.
        (["10\u00a0000 NUM", "m O"], ["10\u00a0000", "m"], ["NUM", "O"]),
    ],
)
def test_comments_and_spaces_of_conll(tmp_path, lines, words, tags):
    path = tmp_path / "t.conll"
    path.write_text("\n".join([*lines, "", *lines]) + "\n", encoding="utf-8")
    expected = {"words": words, "tags": tags}
    assert [record.fields for record in labelled.read(str(path))] == [expected] * 2


def test_a_no_break_space_is_part_of_a_word_in_lines_too():
    task = Task("tagging", ("words",), "tags", None)
    record = line_record(["10\u00a0000  m\u3000x"], KINDS["tagging"], task, (), "")
    assert record.fields == {"words": ["10\u00a0000", "m", "x"]}


KOREAN = "text\n이 영화는 정말 재미있었다. 배우들의 연기가 훌륭했고 음악도 좋았다.\n"


def test_squad(tmp_path):
    path = tmp_path / "t.json"
    possible = {
        "id": "q1",
        "question": "who?",
        "answers": [{"text": "Ann", "answer_start": 0}],
    }
    impossible = {
        "id": "q2",
        "question": "why?",
        "is_impossible": True,
        "answers": [],
        "plausible_answers": [{"text": "Ann", "answer_start": 0}],
    }
    untold = {"id": "q3", "question": "when?"}
    paragraph = {"context": "Ann left.", "qas": [possible, impossible, untold]}
    content = {"data": [{"title": "T", "paragraphs": [paragraph]}]}
    path.write_text(json.dumps(content))
    first, second, third = labelled.read(str(path))
    assert first.fields == {
        "id": "q1",
        "title": "T",
        "context": "Ann left.",
        "question": "who?",
        "answers": spans(("Ann", 0)),
    }
    assert second.fields["answers"] == spans()
    assert "answers" not in third.fields
    assert first.place == f"{path}, question 'q1'"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "a\tb\n1\t2\n3\n", "t.tsv, line 3: 1 fields, but .* 2 columns .a, b"),
        ("t.tsv", "a\ta\n1\t2\n", "line 1: the column name 'a' stands there twice"),
        ("t.tsv", "a\tb\n", "holds no records"),
        ("t.tsv", b"a\n\xff\n", "line 2: not UTF-8"),
        ("t.csv", KOREAN.encode("cp949"), "line 2: not UTF-8 .* -f cp949 -t UTF-8"),
        ("t.conll", "a O\n".encode("utf-16"), "line 1: not UTF-8 .* -f utf-16 -t"),
        ("t.csv", 'a,b\n1,2\n"x"y,2\n', "t.csv, line 3: not CSV"),
        ("t.csv", 'a,b\n1,2\n\n"open,2\n3,4\n', "t.csv, line 4: not CSV"),
        ("t.jsonl", '{"a": "b"}\n{"a": \n', "line 2: not JSON"),
        ("t.jsonl", '["a"]\n', "line 1: a list where a JSON object is expected"),
        ("t.conll", "EU B-ORG\nlonely\n", "line 2: 'lonely' is not a word"),
        ("t.conll", "EU N B-ORG\n# B-ORG\n", "line 2: 2 columns, but 3 before"),
        ("t.conll", "EU N B-ORG\n\nin London O O\n", "line 3: 4 columns, but 3 before"),
        ("t.json", '{"data": [{"paragraphs": [{}]}]}', "not laid out as SQuAD"),
        ("t.json", "[1, 2", "not JSON"),
        ("t.parquet", "a\tb\n", "not Parquet"),
        ("t.xlsx", "a", "the suffix says nothing"),
        ("t.tsv.gz", "a\tb\n", "damaged"),
        ("t.jsonl.zst", zstandard.compress(b'{"a": "b"}\n')[:-1], "cut short"),
        ("t.jsonl", '{"a": "\\udc00"}', "line 1: half a character is no text"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message) as error:
        labelled.read(str(path))
    assert name in str(error.value) and "corpus" not in str(error.value)


def test_missing_file_is_named():
    with pytest.raises(UserError, match=r"'nowhere.tsv': no such file"):
        labelled.read("nowhere.tsv")


@pytest.fixture(scope="module")
def tiny_tasks(tmp_path_factory):
    """A data set with class numbers, as GLUE, CoNLL and SQuAD have them in TFDS."""
    folder = tmp_path_factory.mktemp("tfds")
    with tfds.core.registered.skip_registration():

        class TinyTasks(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                names = tfds.features.ClassLabel(names=["entailment", "not"])
                tags = tfds.features.ClassLabel(names=["O", "B-LOC"])
                features = {
                    "text": tfds.features.Text(),
                    "label": names,
                    "score": np.float32,
                    "tags": tfds.features.Sequence(tags),
                    "answers": tfds.features.Sequence(
                        {"text": tfds.features.Text(), "answer_start": np.int32}
                    ),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                labels = {"train": [1, 0], "test": [-1]}
                return {name: self._generate_examples(v) for name, v in labels.items()}

            def _generate_examples(self, labels):
                for index, label in enumerate(labels):
                    found = [{"text": "봄", "answer_start": 3}] * index
                    yield (
                        index,
                        {
                            "text": f"text {index}",
                            "label": label,
                            "score": 2.5,
                            "tags": [1, 0],
                            "answers": found,
                        },
                    )

        TinyTasks.name = "tiny_tasks"
        builder = TinyTasks(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return folder


def test_tfds_class_numbers_become_names(tiny_tasks, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_tasks))
    found = labelled.read("tfds:tiny_tasks@train")
    by_text = {record.fields["text"]: record.fields for record in found}
    assert by_text == {
        "text 0": {
            "text": "text 0",
            "label": "not",
            "score": "2.5",
            "tags": ["B-LOC", "O"],
            "answers": spans(),
        },
        "text 1": {
            "text": "text 1",
            "label": "entailment",
            "score": "2.5",
            "tags": ["B-LOC", "O"],
            "answers": spans(("봄", 3)),
        },
    }
    assert found[1].place == "tfds:tiny_tasks/1.0.0@train, record 2"
    (unlabelled,) = labelled.read("tfds:tiny_tasks@test")
    assert unlabelled.fields["score"] == "2.5" and "label" not in unlabelled.fields
    mixed = labelled.read("tfds:tiny_tasks@train+test")  # only one of them is unknown
    assert [record.fields["label"] for record in mixed].count("") == 1
    assert len(labelled.read("tfds:tiny_tasks@train[:50%]")) == 1


@pytest.mark.parametrize("split", ["", "@dev", "@train[", "@train[:x]"])
def test_tfds_splits_are_listed(tiny_tasks, monkeypatch, split):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_tasks))
    with pytest.raises(UserError, match="the splits of tiny_tasks are train, test"):
        labelled.read(f"tfds:tiny_tasks{split}")


def write_glue(folder, config, features, splits):
    """Some of GLUE as TFDS has it: an `idx`, and -1 for what is kept secret."""
    with tfds.core.registered.skip_registration():

        class Glue(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("2.0.0")
            BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=config),)

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features | {"idx": np.int32}),
                )

            def _split_generators(self, dl_manager):
                return {n: self._generate_examples(rows) for n, rows in splits.items()}

            def _generate_examples(self, rows):
                for index, row in enumerate(rows):
                    yield index, row | {"idx": index}

        Glue.name = "glue"
        builder = Glue(data_dir=folder, config=config, file_format="array_record")
        builder.download_and_prepare()


@pytest.fixture(scope="module")
def glue_folder(tmp_path_factory):
    folder, text = tmp_path_factory.mktemp("glue"), tfds.features.Text()
    names = tfds.features.ClassLabel(names=glue.LABELS["mnli"])
    pair = {"premise": "a b", "hypothesis": "c"}
    known = [pair | {"label": label} for label in (0, 1, 2, 1)]
    secret = [pair | {"label": -1}] * 3
    write_glue(
        folder,
        "mnli",
        {"premise": text, "hypothesis": text, "label": names},
        {
            "train": known,
            "validation_matched": known,
            "test_matched": secret,
            "test_mismatched": secret[:2],
        },
    )
    pair = {"sentence1": "a b", "sentence2": "c"}
    write_glue(
        folder,
        "stsb",
        {"sentence1": text, "sentence2": text, "label": np.float32},
        {
            "train": [pair | {"label": 2.5}, pair | {"label": 0.0}],
            "validation": [pair | {"label": 5.0}],
            "test": [pair | {"label": -1.0}] * 2,
        },
    )
    return folder


@pytest.mark.parametrize(("name", "tests"), [("mnli", 3), ("stsb", 2)])
def test_test_splits_of_glue_are_unlabelled(
    glue_folder, tokenizer, monkeypatch, name, tests
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(glue_folder))
    config = glue.get_config(name)
    spec = config.task
    task = splits.make_task(config, KINDS[spec.kind])
    parts = {n: labelled.read(config.data[n]) for n in ("train", "eval", "test")}
    for split in ("train", "eval"):
        encode(parts[split], task, tokenizer, "bert")
    assert {r.fields["idx"] for r in parts["test"]} == {*map(str, range(tests))}
    assert all("label" not in record.fields for record in parts["test"])
    examples = encode(
        parts["test"],
        task,
        tokenizer,
        "bert",
        labelled=False,
        labels=label_names(parts["train"], task),
    )
    scores = np.array([0.0, 2.0, 1.0]) if name == "mnli" else np.float32(4.5)
    found = dict.fromkeys(range(tests), scores)
    kind = KINDS[task.kind]
    predicted = predictions.predict(kind, examples, parts["test"], found, task)
    assert {line["idx"] for line in predicted} == {*map(str, range(tests))}
    if name == "mnli":
        assert {line["label"] for line in predicted} == {"neutral"}
        both = labelled.read("tfds:glue/mnli@test_matched+test_mismatched")
        assert [record.fields["idx"] for record in both[3:]] in (["0", "1"], ["1", "0"])


@pytest.fixture(scope="module")
def library_docs(tmp_path_factory):
    """The embedded task, from four installed libraries."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FOREWORD_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(docstrings, "LIBRARIES", ("flax", "optax", "pillow", "python"))
    patch.setattr(docstrings, "CANDIDATES", 80)
    patch.setattr(docstrings, "PER_LIBRARY", 50)
    yield {split: labelled.read(f"python_docs{split}") for split in PARTS}
    patch.undo()


PARTS = ("", "@train", "@eval", "@test")


def test_the_embedded_task_needs_no_file(library_docs):
    texts = [record.fields["text"] for record in library_docs[""]]
    labels = collections.Counter(r.fields["label"] for r in library_docs[""])
    assert labels.keys() == {"flax", "optax", "pillow", "python"}
    assert all(30 < count <= 50 for count in labels.values())
    assert len({*texts}) == len(texts)
    assert not any(docstrings.NAMES.search(text) for text in texts)
    assert min(len(text.split()) for text in texts) >= 10
    assert re.match(r"python_docs, [\w/-]+\.py$", library_docs[""][0].place)
    again = labelled.read("python_docs")  # from the cache
    assert [record.fields for record in again] == [r.fields for r in library_docs[""]]


def test_the_splits_of_the_embedded_task_part_its_texts(library_docs):
    parts = [{r.fields["text"] for r in library_docs[split]} for split in PARTS[1:]]
    whole = {record.fields["text"] for record in library_docs[""]}
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == len(whole)
    assert 0.7 < len(parts[0]) / len(whole) < 0.9 and min(map(len, parts)) > 5
    with pytest.raises(UserError, match="'python_docs@dev': the splits are train, ev"):
        labelled.read("python_docs@dev")


def test_docstrings_that_share_a_paragraph_are_left_out(tmp_path, monkeypatch):
    shared = "Return the number of items that are in the list of 3."
    own = "Say in NumPy what this very function does, in enough words."
    for folder, first in (("a", shared), ("b", shared.replace("3.", "4."))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text(
            f'"""{first}"""\ndef f():\n    """{own} {folder * 3}."""\n'
        )
    files = {n: (tmp_path, [tmp_path / n / "x.py"]) for n in ("a", "b")}
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    monkeypatch.setattr(docstrings, "_library_files", lambda: files)
    masked = own.replace("NumPy", "library")
    assert [record.fields for record in labelled.read("python_docs")] == [
        {"text": f"{masked} {name * 3}.", "label": name, "file": f"{name}/x.py"}
        for name in ("a", "b")
    ]


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    monkeypatch.setattr(docstrings, "LIBRARIES", ("python", "abacus"))
    with pytest.raises(UserError, match="of which abacus is not installed: install"):
        labelled.read("python_docs")
