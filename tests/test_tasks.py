"""Labelled data: readers, encodings as literals, windows, packing, and bad input."""

import collections
import gzip
import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
import zstandard

from configs.finetune import glue
from data import labelled, packing, predictions, spans, tasks, tokenizers
from data.labelled import Record
from data.tasks import Encoded, Examples, Task
from errors import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPECIAL += ["_start_", "_delimiter_", "_classify_"]
PIECES = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", "##x", "##y", "##z"]
PAD, UNK, CLS, SEP, MASK, START, DELIMITER, EXTRACT = range(8)
A, B, C, D, E, F, G = range(8, 15)
Q = PIECES.index("q")
X, Y = PIECES.index("##x"), PIECES.index("##y")

TOPIC = Task("classification", ("text",), "label", None)
PAIR = Task("classification", ("premise", "hypothesis"), "label", ("no", "yes"))
SIMILARITY = Task("similarity", ("one", "two"), "score", None)
CHOICE = Task("choice", ("context",), "answer", None, ("question",), ("choices",))
TAGGING = Task("tagging", ("words",), "tags", None)
SPAN = Task("span", ("context",), "answers", None, ("question",))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return tokenizers.load(str(path))


def records(*rows):
    return [Record(row, f"f.tsv, line {i}") for i, row in enumerate(rows, 2)]


def encode(rows, task, tokenizer, family, **changes):
    settings = {
        "labels": tasks.label_names(rows, task) if "labels" not in changes else (),
        "labelled": True,
        "max_length": 16,
        "max_question_length": 4,
        "window_stride": 2,
    }
    return tasks.encode(rows, task, tokenizer, family=family, **settings | changes)


def one_row(examples, length, slots):
    """The first batch of a single row."""
    shape = packing.RowShape(rows=1, length=length, slots=slots, packed=True)
    batches = packing.evaluation_batches(examples, shape)
    return {name: array.tolist() for name, array in batches[0].items()}


def answers(*pairs):
    return {"text": [t for t, _ in pairs], "answer_start": [str(s) for _, s in pairs]}


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
    elif name.endswith(".zst"):
        content = zstandard.compress(content)
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TABLE), path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["t.tsv", "t.tsv.gz", "t.csv", "t.csv.zst", "t.jsonl", "t.jsonl.gz", "t.parquet"],
)
def test_tables_in_every_format(tmp_path, name):
    path = tmp_path / name
    write_table(path)
    found = labelled.read(str(path))
    assert [record.fields for record in found] == TABLE
    last = {"t.tsv": "line 3", "t.csv": "line 4", "t.jsonl": "line 3"}
    stem = name.removesuffix(".gz").removesuffix(".zst")
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


def test_conll(tmp_path):
    path = tmp_path / "t.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VBZ O\n\n \nBonn NNP B-LOC"
    )
    first, second = labelled.read(str(path))
    assert first.fields == {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}
    assert second.fields == {"words": ["Bonn"], "tags": ["B-LOC"]}
    assert second.place == f"{path}, sentence of line 7"


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
        "answers": answers(("Ann", 0)),
    }
    assert second.fields["answers"] == answers()
    assert "answers" not in third.fields
    assert first.place == f"{path}, question 'q1'"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "a\tb\n1\t2\n3\n", "t.tsv, line 3: 1 fields, but .* 2 columns .a, b"),
        ("t.tsv", "a\ta\n1\t2\n", "line 1: the column name 'a' stands there twice"),
        ("t.tsv", "a\tb\n", "holds no records"),
        ("t.tsv", b"a\n\xff\n", "line 2: not UTF-8"),
        ("t.csv", 'a,b\n1,2\n"x"y,2\n', "t.csv, line 3: not CSV"),
        ("t.csv", 'a,b\n1,2\n\n"open,2\n3,4\n', "t.csv, line 4: not CSV"),
        ("t.jsonl", '{"a": "b"}\n{"a": \n', "line 2: not JSON"),
        ("t.jsonl", '["a"]\n', "line 1: a list where a JSON object is expected"),
        ("t.conll", "EU B-ORG\nlonely\n", "line 2: 'lonely' is not a word"),
        ("t.json", '{"data": [{"paragraphs": [{}]}]}', "not laid out as SQuAD"),
        ("t.json", "[1, 2", "not JSON"),
        ("t.parquet", "a\tb\n", "not Parquet"),
        ("t.xlsx", "a", "the suffix says nothing"),
        ("t.tsv.gz", "a\tb\n", "damaged"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message) as error:
        labelled.read(str(path))
    assert name in str(error.value)


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
            "answers": answers(),
        },
        "text 1": {
            "text": "text 1",
            "label": "entailment",
            "score": "2.5",
            "tags": ["B-LOC", "O"],
            "answers": answers(("봄", 3)),
        },
    }
    assert found[1].place == "tfds:tiny_tasks@train, record 2"
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
    task = Task(
        spec.kind, spec.text_columns, spec.label_column, tuple(spec.labels) or None
    )
    splits = {n: labelled.read(config.data[n]) for n in ("train", "eval", "test")}
    for split in ("train", "eval"):
        encode(splits[split], task, tokenizer, "encoder")
    assert {r.fields["idx"] for r in splits["test"]} == {*map(str, range(tests))}
    assert all("label" not in record.fields for record in splits["test"])
    examples = encode(
        splits["test"],
        task,
        tokenizer,
        "encoder",
        labelled=False,
        labels=tasks.label_names(splits["train"], task),
    )
    scores = np.array([0.0, 2.0, 1.0] if name == "mnli" else 4.5)
    found = dict.fromkeys(range(tests), scores)
    predicted = predictions.predict(
        task.kind,
        examples,
        splits["test"],
        found,
        text_column=task.text_columns[0],
        null_answers=False,
    )
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
    patch.setattr(labelled, "LIBRARIES", ("flax", "optax", "pillow", "python"))
    patch.setattr(labelled, "CANDIDATES", 80)
    patch.setattr(labelled, "PER_LIBRARY", 50)
    yield {split: labelled.read(f"python_docs{split}") for split in PARTS}
    patch.undo()


PARTS = ("", "@train", "@eval", "@test")


def test_the_embedded_task_needs_no_file(library_docs):
    texts = [record.fields["text"] for record in library_docs[""]]
    labels = collections.Counter(r.fields["label"] for r in library_docs[""])
    assert labels.keys() == {"flax", "optax", "pillow", "python"}
    assert all(30 < count <= 50 for count in labels.values())
    assert len({*texts}) == len(texts)
    assert not any(labelled.NAMES.search(text) for text in texts)
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
    monkeypatch.setattr(labelled, "_library_files", lambda: files)
    masked = own.replace("NumPy", "library")
    assert [record.fields for record in labelled.read("python_docs")] == [
        {"text": f"{masked} {name * 3}.", "label": name, "file": f"{name}/x.py"}
        for name in ("a", "b")
    ]


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    monkeypatch.setattr(labelled, "LIBRARIES", ("python", "abacus"))
    with pytest.raises(UserError, match="of which abacus is not installed: install"):
        labelled.read("python_docs")


# Encodings, as literal batches


def test_classification_encoder(tokenizer):
    rows = records(
        {"text": "a bxy", "label": "pos"},
        {"text": "c", "label": "neg"},
        {"text": "d e", "label": "pos"},
    )
    examples = encode(rows, TOPIC, tokenizer, "encoder")
    assert examples.labels == ("neg", "pos")
    assert one_row(examples, length=14, slots=4) == {
        "tokens": [[CLS, A, B, X, Y, SEP, CLS, D, E, SEP, CLS, C, SEP, PAD]],
        "segment_ids": [[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 0]],
        "positions": [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 1, 2, 0]],
        "token_types": [[0] * 14],
        "readout_positions": [[[0], [6], [10], [0]]],
        "labels": [[1, 1, 0, 0]],
        "weights": [[1, 1, 1, 0]],
        "example_ids": [[0, 2, 1, -1]],  # the longest first
    }


def test_classification_decoder(tokenizer):
    rows = records({"text": "a b", "label": "pos"}, {"text": "c", "label": "neg"})
    batch = one_row(encode(rows, TOPIC, tokenizer, "decoder"), length=8, slots=2)
    assert batch == {
        "tokens": [[START, A, B, EXTRACT, START, C, EXTRACT, PAD]],
        "segment_ids": [[1, 1, 1, 1, 2, 2, 2, 0]],
        "positions": [[0, 1, 2, 3, 0, 1, 2, 0]],
        "readout_positions": [[[3], [6]]],
        "labels": [[1, 0]],
        "weights": [[1, 1]],
        "example_ids": [[0, 1]],
        "lm_targets": [[A, B, EXTRACT, 0, C, EXTRACT, 0, 0]],
        "lm_weights": [[1, 1, 1, 0, 1, 1, 0, 0]],
    }


def test_pairs(tokenizer):
    rows = records({"premise": "a b", "hypothesis": "c", "label": "yes"})
    encoder = one_row(encode(rows, PAIR, tokenizer, "encoder"), length=6, slots=1)
    assert encoder["tokens"] == [[CLS, A, B, SEP, C, SEP]]
    assert encoder["token_types"] == [[0, 0, 0, 0, 1, 1]]
    assert encoder["readout_positions"] == [[[0]]]
    assert encoder["labels"] == [[1]]
    decoder = one_row(encode(rows, PAIR, tokenizer, "decoder"), length=6, slots=1)
    assert decoder["tokens"] == [[START, A, B, DELIMITER, C, EXTRACT]]
    assert decoder["readout_positions"] == [[[5]]]


def test_similarity(tokenizer):
    rows = records(
        {"one": "a b", "two": "c", "score": "2.5"},
        {"one": "d", "two": "e", "score": "0"},
    )
    encoder = one_row(encode(rows, SIMILARITY, tokenizer, "encoder"), 11, slots=2)
    assert encoder["readout_positions"] == [[[0], [6]]]
    assert encoder["scores"] == [[2.5, 0]]
    assert "labels" not in encoder
    decoder = one_row(encode(rows, SIMILARITY, tokenizer, "decoder"), 22, slots=2)
    assert decoder["tokens"] == [
        [
            *(START, A, B, DELIMITER, C, EXTRACT, START, C, DELIMITER, A, B, EXTRACT),
            *(START, D, DELIMITER, E, EXTRACT, START, E, DELIMITER, D, EXTRACT),
        ]
    ]
    assert decoder["segment_ids"] == [[1] * 6 + [2] * 6 + [3] * 5 + [4] * 5]
    assert decoder["positions"] == [[*range(6), *range(6), *range(5), *range(5)]]
    assert decoder["readout_positions"] == [[[5, 11], [16, 21]]]


def test_choice(tokenizer):
    row = {"context": "a b", "question": "q", "choices": ["c", "d e"], "answer": "1"}
    other = row | {"choices": ["d", "e"], "answer": "0"}
    encoder = encode(records(row, other), CHOICE, tokenizer, "encoder")
    assert encoder.labels == ("0", "1")
    assert one_row(encoder, length=29, slots=2) == {
        "tokens": [
            [
                *(CLS, A, B, SEP, Q, C, SEP, CLS, A, B, SEP, Q, D, E, SEP),
                *(CLS, A, B, SEP, Q, D, SEP, CLS, A, B, SEP, Q, E, SEP),
            ]
        ],
        "segment_ids": [[1] * 7 + [2] * 8 + [3] * 7 + [4] * 7],
        "positions": [[*range(7), *range(8), *range(7), *range(7)]],
        "token_types": [
            [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1] + [0, 0, 0, 0, 1, 1, 1] * 2
        ],
        "readout_positions": [[[0, 7], [15, 22]]],
        "labels": [[1, 0]],
        "weights": [[1, 1]],
        "example_ids": [[0, 1]],
    }
    decoder = encode(records(row, other), CHOICE, tokenizer, "decoder")
    batch = one_row(decoder, length=29, slots=2)
    assert batch["tokens"][0][:15] == [
        *(START, A, B, Q, DELIMITER, C, EXTRACT),
        *(START, A, B, Q, DELIMITER, D, E, EXTRACT),
    ]
    assert batch["readout_positions"] == [[[6, 14], [21, 28]]]


def test_choice_with_a_column_for_each_answer_and_no_question(tokenizer):
    task = Task("choice", ("s1", "s2"), "right", ("1", "2"), (), ("e1", "e2"))
    rows = records({"s1": "a", "s2": "b", "e1": "c", "e2": "d", "right": "2"})
    batch = one_row(encode(rows, task, tokenizer, "decoder"), length=12, slots=1)
    assert batch["tokens"][0][:6] == [START, A, B, DELIMITER, C, EXTRACT]
    assert batch["labels"] == [[1]]


def test_a_choice_loses_the_end_of_its_context_only(tokenizer):
    row = {"context": "a b c d e f", "question": "q", "choices": ["b", "c d"]}
    rows = records(row | {"answer": "0"})
    task = Task(
        "choice", ("context",), "answer", ("0", "1"), ("question",), ("choices",)
    )
    examples = encode(rows, task, tokenizer, "encoder", max_length=8, labels=("0", "1"))
    assert one_row(examples, length=16, slots=1)["tokens"] == [
        [CLS, A, B, C, SEP, Q, B, SEP, CLS, A, B, SEP, Q, C, D, SEP]
    ]
    assert examples.cuts == ["f.tsv, line 2: 6 to 2 pieces of context"]


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_tagging_labels_first_pieces(tokenizer, family):
    first, last = (CLS, SEP) if family == "encoder" else (START, EXTRACT)
    rows = records(
        {"words": ["axy", "b"], "tags": ["B-LOC", "O"]},
        {"words": ["\u200b", "c"], "tags": ["O", "B-LOC"]},
    )
    batch = one_row(encode(rows, TAGGING, tokenizer, family), length=11, slots=2)
    assert batch["tokens"] == [[first, A, X, Y, B, last, first, UNK, C, last, PAD]]
    assert batch["labels"] == [[0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]]  # B-LOC, O
    assert batch["weights"] == [[0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0]]
    assert batch["word_ids"] == [[-1, 0, -1, -1, 1, -1, -1, 0, 1, -1, -1]]
    assert batch["example_ids"] == [[0, 1]]
    assert ("lm_targets" in batch) == (family == "decoder")


def test_words_beyond_the_window_are_reported(tokenizer):
    words = ["a", "b", "cxyxyxy", "d"]
    rows = records({"words": words, "tags": ["O"] * 4})
    examples = encode(rows, TAGGING, tokenizer, "encoder", max_length=8)
    batch = one_row(examples, length=8, slots=1)
    assert batch["tokens"] == [[CLS, A, B, C, X, Y, X, SEP]]
    assert batch["word_ids"] == [[-1, 0, 1, 2, -1, -1, -1, -1]]
    assert examples.cuts == ["f.tsv, line 2: 3 of 4 words are in view"]
    report = tasks.cut_report(examples, 8)
    assert report.startswith("1 text(s) were cut to max_length=8, the first: f.tsv")


def test_words_of_byte_level_bpe_begin_with_a_space(tokenizer):
    byte_bpe = tokenizers.train(
        ["the fox and the hen "] * 30,
        algorithm="byte_bpe",
        vocab_size=280,
        lowercase=False,
        strip_accents=False,
        unicode_form="none",
        special_tokens=tokenizers.GPT_SPECIAL_TOKENS,
        sample_bytes=10_000,
    )
    rows = records({"words": ["the", "fox"], "tags": ["O", "O"]})
    examples = encode(rows, TAGGING, byte_bpe, "decoder")
    tokens = examples.encoded[0].arrays["tokens"]
    assert byte_bpe.decode(tokens[1:-1]) == " the fox"
    assert tasks.word_prefix(tokenizer) == ""


CONTEXT = "A bxy c, D e f G"  # the comma is unknown: 9 pieces
PIECES_OF_CONTEXT = [A, B, X, Y, C, UNK, D, E, F, G]


def test_span(tokenizer):
    rows = records(
        {"question": "q", "context": CONTEXT, "answers": answers(("A bxy", 0))},
        {"question": "q", "context": "a b", "answers": answers()},
    )
    settings = {"max_length": 9, "window_stride": 3, "labels": ()}
    encoder = encode(rows, SPAN, tokenizer, "encoder", **settings)
    shown = [example.arrays["tokens"].tolist() for example in encoder.encoded]
    assert shown == [
        [CLS, Q, SEP, *PIECES_OF_CONTEXT[0:5], SEP],
        [CLS, Q, SEP, *PIECES_OF_CONTEXT[3:8], SEP],
        [CLS, Q, SEP, *PIECES_OF_CONTEXT[6:10], SEP],
        [CLS, Q, SEP, A, B, SEP],
    ]
    assert [window.record for window in encoder.windows] == [0, 0, 0, 1]
    batch = one_row(encoder, length=32, slots=5)
    assert batch["token_types"][0][:9] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert batch["example_segments"] == [[1, 2, 3, 4, 0]]
    # The answer is in the first window; the others, and no answer, point at [CLS].
    assert batch["starts"] == [[3, 9, 18, 26, 0]]
    assert batch["ends"] == [[6, 9, 18, 26, 0]]
    assert batch["weights"] == [[1, 1, 1, 1, 0]]
    decoder = encode(rows, SPAN, tokenizer, "decoder", **settings)
    assert decoder.encoded[0].arrays["tokens"].tolist() == [
        *(START, Q, DELIMITER),
        *(A, B, X, Y, C, EXTRACT),
    ]


@pytest.mark.parametrize(
    ("answer", "begin", "places"),
    [("A", 0, (3, 3)), ("G", 15, (12, 12)), ("xy c", 3, (5, 7)), ("x", 3, (5, 5))],
)
def test_answers_at_the_ends_and_inside_words(tokenizer, answer, begin, places):
    row = {"question": "q", "context": CONTEXT, "answers": answers((answer, begin))}
    examples = encode(records(row), SPAN, tokenizer, "encoder", labels=())
    slot = examples.encoded[0].slot
    assert (slot["starts"], slot["ends"]) == places


def test_long_questions_are_cut(tokenizer):
    row = {"question": "a b c d e f", "context": "g", "answers": answers()}
    examples = encode(records(row), SPAN, tokenizer, "encoder", labels=())
    assert examples.encoded[0].arrays["tokens"].tolist() == [
        *(CLS, A, B, C, D, SEP, G, SEP)
    ]
    assert examples.cuts == ["f.tsv, line 2: 6 to 4 pieces of question"]


def test_unlabelled_data_needs_no_label_column(tokenizer):
    for rows, task in [
        (records({"text": "a"}), TOPIC),
        (records({"one": "a", "two": "b"}), SIMILARITY),
        (records({"context": "a", "question": "b", "choices": ["c", "d"]}), CHOICE),
        (records({"words": ["a"]}), TAGGING),
        (records({"context": "a", "question": "b"}), SPAN),
    ]:
        examples = tasks.encode(
            rows,
            task,
            tokenizer,
            family="decoder",
            labels=("0", "1"),
            labelled=False,
            max_length=16,
            max_question_length=4,
            window_stride=2,
        )
        batch = one_row(examples, length=16, slots=2)
        assert not np.any(batch["weights"])
        assert batch["example_ids"] == [[0, -1]]


def test_labels_sort_as_numbers_where_they_are():
    rows = records(*({"text": "a", "label": str(n)} for n in (10, 9, -1, 10)))
    assert tasks.label_names(rows, TOPIC) == ("-1", "9", "10")
    rows += records({"text": "a", "label": "x"})
    assert tasks.label_names(rows, TOPIC) == ("-1", "10", "9", "x")


@pytest.mark.parametrize("room", [6, 7])
def test_longest_first_as_bert_pops(room):
    for a in range(9):
        for b in range(9):
            kept = [a, b]
            while sum(kept) > room:
                kept[0 if kept[0] > kept[1] else 1] -= 1
            assert tasks.longest_first(a, b, room) == tuple(kept)


def test_pairs_are_cut_longest_first(tokenizer):
    row = {"premise": "a b c d e f g", "hypothesis": "d e", "label": "no"}
    examples = encode(records(row), PAIR, tokenizer, "decoder", max_length=8)
    assert one_row(examples, length=8, slots=1)["tokens"] == [
        [START, A, B, C, DELIMITER, D, E, EXTRACT]
    ]
    assert examples.cuts == ["f.tsv, line 2: [7, 2] to [3, 2] pieces"]


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("premise", "hypothesis", "kept"),
    [
        ("a " * 20, "d e", [3, 2]),
        ("d", "a " * 20, [1, 4]),
        ("a " * 9, "b " * 9, [3, 2]),
    ],
)
def test_a_side_longer_than_the_window_is_cut_and_reported(
    tokenizer, family, premise, hypothesis, kept
):
    row = {"premise": premise, "hypothesis": hypothesis, "label": "no"}
    examples = encode(records(row), PAIR, tokenizer, family, max_length=8)
    assert examples.lengths.tolist() == [8]
    lengths = [len(premise.split()), len(hypothesis.split())]
    assert examples.cuts == [f"f.tsv, line 2: {lengths} to {kept} pieces"]


GOOD = {
    TOPIC: {"text": "a", "label": "x"},
    PAIR: {"premise": "a", "hypothesis": "b", "label": "no"},
    SIMILARITY: {"one": "a", "two": "b", "score": "1"},
    CHOICE: {"context": "a", "question": "q", "choices": ["c", "d"], "answer": "0"},
    TAGGING: {"words": ["a", "b"], "tags": ["O", "O"]},
    SPAN: {"context": "a b c", "question": "q", "answers": answers(("b", 2))},
}


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (TOPIC, {"text": None}, "no column 'text'; the columns there are 'label'"),
        (TOPIC, {"label": None}, "no column 'label'; the columns there are 'text'"),
        (TOPIC, {"text": "  "}, "column 'text' is empty"),
        (TOPIC, {"text": "\u200b"}, "the tokenizer finds no text in column 'text'"),
        (TOPIC, {"text": ["a"]}, "column 'text' holds a list"),
        (TOPIC, {"label": "z"}, r"label 'z' .* not one of the 2 labels '0', '1'"),
        (PAIR, {"hypothesis": ""}, "column 'hypothesis' is empty"),
        (SIMILARITY, {"score": "high"}, "score in column 'score' is 'high'"),
        (SIMILARITY, {"score": "nan"}, "score in column 'score' is 'nan'"),
        (CHOICE, {"choices": ["c"]}, "1 answers, but the labels '0', '1' stand for 2"),
        (CHOICE, {"choices": ["c", " "]}, "finds no text in column 'choices'"),
        (CHOICE, {"choices": "c"}, "a list of answers is expected"),
        (CHOICE, {"answer": "2"}, "label '2' in column 'answer' is not one of"),
        (CHOICE, {"question": "a b c d e f g h i j k l"}, "leave no room for context"),
        (TAGGING, {"tags": ["0"]}, "2 words but 1 tags"),
        (TAGGING, {"words": []}, "a sentence without words"),
        (TAGGING, {"words": ["a", ""]}, "the word '' has no text"),
        (TAGGING, {"tags": ["0", "B-X"]}, "label 'B-X' in column 'tags'"),
        (
            SPAN,
            {"answers": answers(("c", 2))},
            "'c' does not stand at character 2.*'b'",
        ),
        (SPAN, {"answers": answers(("c", -1))}, "does not stand at character -1"),
        (SPAN, {"answers": answers(("", 2))}, "'' does not stand at character 2"),
        (SPAN, {"answers": "b"}, "where .* is expected"),
        (SPAN, {"context": " "}, "column 'context' is empty"),
    ],
)
def test_bad_records_are_named(tokenizer, task, change, message):
    bad = {key: v for key, v in (GOOD[task] | change).items() if v is not None}
    labels = () if task in (SIMILARITY, SPAN) else ("0", "1")
    rows = [Record(bad, "dev.tsv, line 7")]
    with pytest.raises(UserError, match=message) as error:
        encode(rows, task, tokenizer, "encoder", labels=labels)
    assert str(error.value).startswith("dev.tsv, line 7: ")


@pytest.mark.parametrize(
    ("name", "train", "dev", "task", "message"),
    [
        (
            "dev.tsv",
            "text\tlabel\na\tx\nb\ty\n",
            "text\tlabel\na\tx\nb\tz\n",
            TOPIC,
            r"dev.tsv, line 3: the label 'z' .* 2 labels 'x', 'y', .* this file are "
            "'x', 'z'; correct it, or list all in task.labels",
        ),
        (
            "dev.conll",
            "a B-X\nb O\n",
            "a O\n\nb O\nc B-Y\n",
            TAGGING,
            r"dev.conll, sentence of line 3: the label 'B-Y' .* 2 labels 'B-X', 'O', "
            ".* this file are 'B-Y', 'O'; correct",
        ),
    ],
)
def test_a_label_of_the_other_file_only(
    tmp_path, tokenizer, name, train, dev, task, message
):
    splits = {}
    for split, content in (("train", train), ("dev", dev)):
        path = tmp_path / name.replace("dev", split)
        path.write_text(content)
        splits[split] = labelled.read(str(path))
    labels = tasks.label_names(splits["train"], task)
    with pytest.raises(UserError, match=message):
        encode(splits["dev"], task, tokenizer, "encoder", labels=labels)


@pytest.mark.parametrize(("tags", "rest"), [(["B-X", "O"], "O"), (["V", "N"], "N")])
def test_words_out_of_view_get_a_tag_that_is_a_label(tokenizer, tags, rest):
    rows = records({"words": ["a"] * 8, "tags": tags * 4})
    examples = encode(rows, TAGGING, tokenizer, "encoder", max_length=8)
    first = examples.labels.index(tags[0])
    scores = np.full((6, 2), -50.0)
    scores[:, first] = 50.0
    (predicted,) = predictions.predict(
        "tagging",
        examples,
        rows,
        {0: scores},
        text_column="words",
        null_answers=False,
    )
    assert predicted["tags"] == [tags[0]] * 6 + [rest] * 2
    assert predicted["probabilities"] == [1.0] * 6 + [0.0] * 2


def test_bad_settings_are_named(tokenizer):
    with pytest.raises(UserError, match=r"task kind 'topic'; it must be one of"):
        Task("topic", ("text",), "label", None)
    with pytest.raises(UserError, match=r"task.text_columns=.'a',.*takes 2 of them"):
        Task("similarity", ("a",), "score", None)
    with pytest.raises(UserError, match=r"task.answer_columns=..: .*takes 1 to 99"):
        Task("choice", ("a",), "label", None)
    with pytest.raises(UserError, match="has a name twice"):
        Task("classification", ("text",), "label", ("x", "x"))
    rows = records(GOOD[TOPIC])
    with pytest.raises(UserError, match="max_length=3 must be at least"):
        encode(rows, TOPIC, tokenizer, "encoder", max_length=3)
    with pytest.raises(UserError, match="leaves no room for context beside 6 pieces"):
        encode(
            records(GOOD[SPAN]),
            SPAN,
            tokenizer,
            "encoder",
            max_length=9,
            max_question_length=6,
        )


def test_a_family_needs_its_special_tokens(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]))
    bert = tokenizers.load(str(path))
    with pytest.raises(
        UserError, match=r"a decoder needs .* no delimiter, extract, st"
    ):
        tasks.make_frame(bert, "decoder")


# Windows and answers


def test_window_spans():
    assert spans.window_spans(5, room=5, stride=2) == [(0, 5)]
    assert spans.window_spans(6, room=5, stride=2) == [(0, 5), (2, 6)]
    assert spans.window_spans(9, room=3, stride=100) == [(0, 3), (3, 6), (6, 9)]


def test_max_context_as_in_berts_comment():
    """run_squad.py: "bought" has 4 and 0 pieces around it in B, 1 and 3 in C."""
    words = "the man went to the store and bought a gallon of milk".split()
    places = [(0, 5), (3, 8), (6, 11)]
    shown = [
        [word for word, is_max in zip(words[a:b], best, strict=True) if is_max]
        for (a, b), best in zip(places, spans.max_context(places), strict=True)
    ]
    assert shown == [
        ["the", "man", "went", "to"],
        ["the", "store", "and"],
        ["bought", "a", "gallon", "of"],
    ]


def test_max_context_prefers_the_longer_window_then_the_earlier():
    shown = [best.tolist() for best in spans.max_context([(0, 3), (2, 7)])]
    assert shown == [[True, True, False], [True] * 5]
    shown = [best.tolist() for best in spans.max_context([(0, 3), (2, 5)])]
    assert shown == [[True] * 3, [False, True, True]]


def peaked(size, **peaks):
    """Scores of 0 but at the places named p<place>."""
    scores = np.zeros(size)
    for name, value in peaks.items():
        scores[int(name[1:])] = value
    return scores


@pytest.fixture
def windows(tokenizer):
    row = {"question": "q", "context": CONTEXT, "answers": answers()}
    settings = {"max_length": 9, "window_stride": 3, "labels": ()}
    return encode(records(row), SPAN, tokenizer, "encoder", **settings).windows


def predict(windows, starts, ends, n_best=20, max_answer_pieces=30):
    return spans.best_answers(
        CONTEXT,
        windows,
        starts,
        ends,
        n_best=n_best,
        max_answer_pieces=max_answer_pieces,
    )


def test_answers_are_cut_from_the_original_text(tokenizer):
    row = {"question": "q", "context": CONTEXT, "answers": answers()}
    (window,) = encode(records(row), SPAN, tokenizer, "encoder", labels=()).windows
    for start, end, text in [
        (3, 3, "A"),
        (12, 12, "G"),
        (3, 12, CONTEXT),
        (4, 7, "bxy c"),
        (7, 9, "c, D"),
    ]:
        scores = [peaked(14, **{f"p{start}": 5})], [peaked(14, **{f"p{end}": 4})]
        for n_best in (1, 3):
            prediction = predict([window], *scores, n_best=n_best)
            best = prediction.answers[0]
            assert (best.text, best.score) == (text, 9)
            assert CONTEXT[best.begin : best.end] == text
            assert len(prediction.answers) == n_best
            total = sum(answer.probability for answer in prediction.answers)
            assert total + prediction.null_probability == pytest.approx(1)


def test_only_real_spans_compete(windows):
    # The question (1), [SEP] (2, 8) and ends before starts score high, and lose.
    starts = [peaked(9, p1=9, p2=9, p8=9, p7=3), peaked(9), peaked(8)]
    ends = [peaked(9, p1=9, p2=9, p8=9, p3=3, p7=1), peaked(9), peaked(8)]
    assert predict(windows, starts, ends).text(None) == "A"  # 3 at the end "A"
    assert all(a.text.strip() for a in predict(windows, starts, ends).answers)


def test_long_answers_are_left_out(windows):
    starts, ends = [peaked(9, p3=5)], [peaked(9, p5=5, p4=2)]
    best = {n: predict(windows[:1], starts, ends, 20, n).text(None) for n in (1, 2, 3)}
    assert best == {1: "A", 2: "A b", 3: "A bx"}


def test_an_answer_counts_from_the_window_with_most_context(windows):
    # "c" is piece 4: last of the first window, second of the second.
    assert [window.is_max_context.tolist() for window in windows] == [
        [True, True, True, True, False],
        [False, True, True, True, False],
        [False, True, True, True],
    ]
    starts = [peaked(9, p7=9), peaked(9, p4=3), peaked(8)]
    ends = [peaked(9, p7=1), peaked(9, p4=3), peaked(8)]
    best = predict(windows, starts, ends).answers[0]
    assert (best.text, best.score) == ("c", 6)


def test_no_answer(windows):
    starts = [peaked(9, p0=4, p3=3), peaked(9, p0=1), peaked(8, p0=7)]
    ends = [peaked(9, p0=4, p3=2), peaked(9, p0=1.5), peaked(8, p0=7)]
    prediction = predict(windows, starts, ends)
    assert prediction.null_score == 2.5  # the least over the windows
    assert prediction.null_margin == 2.5 - 5
    assert 0 < prediction.null_probability < 0.1
    assert prediction.text(None) == prediction.text(0.0) == "A"
    assert prediction.text(-3.0) == ""


def test_window_scores_find_their_way_home(tokenizer):
    rows = records(
        {"question": "q", "context": CONTEXT, "answers": answers()},
        {"question": "q", "context": "a b", "answers": answers()},
    )
    settings = {"max_length": 9, "window_stride": 3, "labels": ()}
    examples = encode(rows, SPAN, tokenizer, "encoder", **settings)
    shape = packing.RowShape(rows=3, length=16, slots=2, packed=True)
    (batch,) = packing.evaluation_batches(examples, shape)
    logits = batch["tokens"].astype(np.float32)
    found = {
        index: (start.tolist(), end.tolist())
        for index, start, end in spans.window_scores(batch, logits, -logits)
    }
    assert sorted(found) == [0, 1, 2, 3]
    for index, (start, end) in found.items():
        tokens = examples.encoded[index].arrays["tokens"]
        assert start == tokens.tolist()
        assert end == (-tokens).tolist()


@pytest.mark.parametrize("algorithm", tokenizers.ALGORITHMS)
def test_offsets_of_every_tokenizer(algorithm):
    text = "  The naïve FOX, 한국어 😀 \n ran."
    trained = tokenizers.train(
        [text * 20, "the quick fox ran and ran"],
        algorithm=algorithm,
        vocab_size=400,
        lowercase=True,
        strip_accents=True,
        unicode_form="NFKC",
        special_tokens=tokenizers.BERT_SPECIAL_TOKENS,
        sample_bytes=100_000,
    )
    (ids, offsets), (none, empty) = trained.encode_batch_offsets([text, ""])
    assert ids.tolist() == trained.encode_batch([text])[0].tolist()
    assert offsets.shape == (len(ids), 2)
    assert (none.shape, empty.shape) == ((0,), (0, 2))
    offsets = spans.without_spaces(text, offsets)
    for word in ("The", "naïve", "FOX", "한국어", "😀", "ran"):
        begin = text.index(word)
        first, last = spans.answer_pieces(offsets, begin, begin + len(word))
        assert text[offsets[first, 0] : offsets[last, 1]] == word
    covered = {i for begin, end in offsets.tolist() for i in range(begin, end)}
    assert covered == {i for i, c in enumerate(text) if not c.isspace()}


# Packing


def examples_of(lengths):
    """Classification examples of given lengths, token = example index."""
    encoded = [
        Encoded(
            {
                "tokens": np.full(length, index, np.int32),
                "segment_ids": np.ones(length, np.int32),
                "positions": np.arange(length, dtype=np.int32),
                "token_types": np.zeros(length, np.int32),
            },
            {
                "readout_positions": np.zeros(1, np.int32),
                "labels": np.int32(index % 2),
                "weights": np.float32(1),
            },
        )
        for index, length in enumerate(lengths)
    ]
    return Examples("classification", "encoder", ("0", "1"), encoded, [], [], 0)


def random_lengths(kind, count=3000):
    rng = np.random.default_rng(0)
    if kind == "uniform":
        return rng.integers(5, 129, count)
    if kind == "heavy_tail":
        return np.clip(rng.lognormal(2.7, 0.9, count), 4, 128).astype(int)
    if kind == "short_or_long":
        return np.where(rng.random(count) < 0.1, 128, rng.integers(4, 10, count))
    if kind == "all_over_half":
        return rng.integers(65, 70, count)
    return np.full(count, 127)


def shape_for(examples, packed=True, read_once=False):
    return packing.row_shape(
        examples,
        examples_per_batch=32,
        longest_row=512,
        rows_multiple=2,
        packed=packed,
        read_once=read_once,
    )


@pytest.mark.parametrize(
    "kind", ["uniform", "heavy_tail", "short_or_long", "all_over_half", "constant"]
)
def test_padding_is_under_a_tenth(kind):
    examples = examples_of(random_lengths(kind))
    shape = shape_for(examples)
    assert shape.rows % 2 == 0 and shape.length <= 512
    batches = packing.training_batches(examples, shape, seed=3)
    seen = [batches[step] for step in range(40)]
    assert packing.padding_share(seen) < 0.1
    per_batch = np.mean([np.sum(batch["example_ids"] >= 0) for batch in seen])
    assert abs(per_batch - 32) < 8


@pytest.mark.parametrize("count", [300, 3000])
@pytest.mark.parametrize(
    "kind", ["uniform", "heavy_tail", "short_or_long", "all_over_half", "constant"]
)
def test_padding_of_what_is_read_once_is_under_a_tenth(kind, count):
    examples = examples_of(random_lengths(kind, count))
    shape = shape_for(examples, read_once=True)
    batches = packing.evaluation_batches(examples, shape)
    assert packing.padding_share(batches) < 0.1
    assert 20 < count / len(batches) < 48


def ids_of(batches):
    ids = np.concatenate([batch["example_ids"].ravel() for batch in batches])
    return ids[ids >= 0].tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_every_example_once_in_evaluation(packed):
    examples = examples_of(random_lengths("heavy_tail", 501))
    shape = shape_for(examples, packed)
    ids = ids_of(packing.evaluation_batches(examples, shape))
    assert sorted(ids) == [*range(501)]
    if not packed:
        assert ids == [*range(501)]
    last = packing.evaluation_batches(examples, shape)[-1]
    is_empty = (last["example_ids"] < 0).all(axis=1)
    assert not last["segment_ids"][is_empty].any()
    assert not last["weights"][last["example_ids"] < 0].any()


def test_every_example_once_an_epoch_in_a_new_order():
    examples = examples_of(random_lengths("uniform", 200))
    shape = packing.RowShape(rows=3, length=256, slots=8, packed=True)
    batches = packing.training_batches(examples, shape, seed=1)
    ids = ids_of(batches[step] for step in range(60))
    epochs = [ids[i : i + 200] for i in range(0, len(ids) - 199, 200)]
    assert len(epochs) >= 3
    for epoch in epochs:
        assert sorted(epoch) == [*range(200)]
    assert epochs[0] != epochs[1]
    other = packing.training_batches(examples, shape, seed=2)
    assert ids_of([other[0]]) != ids_of([batches[0]])


def test_any_step_can_be_computed_alone():
    examples = examples_of(random_lengths("uniform", 60))
    shape = packing.RowShape(rows=2, length=256, slots=8, packed=True)
    batches = packing.training_batches(examples, shape, seed=1)
    in_order = [batches[step] for step in range(40)]
    for step in (39, 7, 20, 0):
        alone = packing.training_batches(examples, shape, seed=1)[step]
        np.testing.assert_equal(alone, in_order[step])
        np.testing.assert_equal(batches[step], in_order[step])


def test_hosts_share_the_batch():
    examples = examples_of(random_lengths("uniform", 60))
    shape = packing.RowShape(rows=4, length=256, slots=8, packed=True)
    whole = packing.training_batches(examples, shape, seed=1)[5]
    parts = [
        packing.training_batches(
            examples, shape, seed=1, host_index=index, host_count=2
        )[5]
        for index in range(2)
    ]
    for name, array in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(joined, array)


def test_packed_rows_hold_what_single_rows_hold():
    examples = examples_of(random_lengths("uniform", 50))
    packed = packing.evaluation_batches(examples, shape_for(examples, read_once=True))
    single = packing.evaluation_batches(examples, shape_for(examples, packed=False))

    def contents(batches):
        found = {}
        for batch in batches:
            for row, slot in np.argwhere(batch["example_ids"] >= 0):
                begin = batch["readout_positions"][row, slot, 0]
                segment = batch["segment_ids"][row, begin]
                inside = batch["segment_ids"][row] == segment
                found[int(batch["example_ids"][row, slot])] = (
                    batch["tokens"][row, inside].tolist(),
                    batch["positions"][row, inside].tolist(),
                    int(batch["labels"][row, slot]),
                )
        return found

    assert contents(packed) == contents(single)
    assert len(contents(packed)) == 50


def test_first_fit():
    lengths = np.array([5, 6, 3, 2, 4, 2])
    assert packing.pack(lengths, 10, slots=9) == [[0, 2, 3], [1, 4], [5]]
    assert packing.pack(lengths, 10, slots=2) == [[0, 2], [1, 3], [4, 5]]
    assert packing.pack(lengths, 10, slots=1) == [[i] for i in range(6)]


def test_examples_longer_than_a_row_are_refused():
    examples = examples_of([5, 600])
    with pytest.raises(
        UserError, match=r"longest example has 600 tokens .* rows hold 512"
    ):
        shape_for(examples)
    shape = packing.RowShape(rows=2, length=256, slots=8, packed=True)
    with pytest.raises(UserError, match="an example has 600 tokens and rows hold 256"):
        packing.evaluation_batches(examples, shape)
    with pytest.raises(UserError, match="2 rows do not divide over 3 hosts"):
        packing.training_batches(examples_of([5]), shape, seed=0, host_count=3)


def test_describe(tokenizer):
    rows = records({"text": "a b", "label": "pos"}, {"text": "c", "label": "neg"})
    shape = packing.RowShape(rows=1, length=8, slots=2, packed=True)
    for task, row, expected in [
        (TOPIC, rows, "example 1 -> 'neg'"),
        (SIMILARITY, records(GOOD[SIMILARITY]), "example 0 -> 1"),
        (TAGGING, records(GOOD[TAGGING]), "a/O b/O"),
        (SPAN, records(GOOD[SPAN]), "example 0 -> 'b'"),
    ]:
        examples = encode(row, task, tokenizer, "encoder")
        (batch,) = packing.evaluation_batches(examples, shape)
        text = packing.describe(batch, examples, tokenizer, rows=1)
        assert expected in text
        assert re.search(r"sequence 1: \[CLS\] \w", text)
