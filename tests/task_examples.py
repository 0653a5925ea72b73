"""Small labelled tasks and a tokenizer of single letters, for the tests of tasks."""

import dataclasses

from configs.finetune import topic
from data import tokenizers
from data.labelled import Record
from tasks import KINDS, packing, splits
from tasks.encoding import Task, make_frame

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPECIAL += ["_start_", "_delimiter_", "_classify_"]
PIECES = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", "##x", "##y", "##z"]
PAD, UNK, CLS, SEP, MASK, START, DELIMITER, EXTRACT = range(8)
A, B, C, D, E, F, G = range(8, 15)
Q = PIECES.index("q")
X, Y = PIECES.index("##x"), PIECES.index("##y")

CLASSES = {"task.positive_label": ""}
TOPIC = Task("classification", ("text",), "label", None, own=CLASSES)
PAIR = Task(
    "classification", ("premise", "hypothesis"), "label", ("no", "yes"), own=CLASSES
)
SIMILARITY = Task("similarity", ("one", "two"), "score", None)
CHOICE = Task("choice", ("context",), "answer", None, ("question",), ("choices",))
TAGGING = Task("tagging", ("words",), "tags", None)
SPAN = Task("span", ("context",), "answers", None, ("question",))


def letters(folder):
    """The tokenizer of `PIECES`."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return tokenizers.load(str(path))


def records(*rows):
    return [Record(row, f"f.tsv, line {i}") for i, row in enumerate(rows, 2)]


def label_names(rows, task):
    return splits.label_names(KINDS[task.kind], rows, task)


def encode(
    rows,
    task,
    tokenizer,
    family,
    stride=2,
    longest_question=4,
    null_position="readout",
    **changes,
):
    own = {"data.window_stride": stride, "data.max_question_length": longest_question}
    own["task.null_position"] = null_position
    settings = {
        "labels": label_names(rows, task) if "labels" not in changes else (),
        "labelled": True,
        "max_length": 16,
    }
    return splits.encode(
        KINDS[task.kind],
        rows,
        dataclasses.replace(task, own=own),
        tokenizer,
        make_frame(tokenizer, {"family": family}),
        **settings | changes,
    )


def one_row(examples, length, slots):
    """The first batch of a single row."""
    shape = packing.RowShape(rows=1, length=length, slots=slots, packed=True)
    batches = packing.evaluation_batches(examples, shape)
    return {name: array.tolist() for name, array in batches[0].items()}


def spans(*pairs):
    """An answer's text and its place, as SQuAD has them."""
    return {"text": [t for t, _ in pairs], "answer_start": [str(s) for _, s in pairs]}


CONTEXT = "A bxy c, D e f G"  # the comma is unknown: 9 pieces
PIECES_OF_CONTEXT = [A, B, X, Y, C, UNK, D, E, F, G]

GOOD = (
    (TOPIC, {"text": "a", "label": "x"}),
    (PAIR, {"premise": "a", "hypothesis": "b", "label": "no"}),
    (SIMILARITY, {"one": "a", "two": "b", "score": "1"}),
    (
        CHOICE,
        {"context": "a", "question": "q", "choices": ["c", "d"], "answer": "0"},
    ),
    (TAGGING, {"words": ["a", "b"], "tags": ["O", "O"]}),
    (SPAN, {"context": "a b c", "question": "q", "answers": spans(("b", 2))}),
)


def good(task):
    """Fields of a record that the task can read."""
    return next(fields for own, fields in GOOD if own is task)


def head_of(dropout, **changes):
    """`head` of a config."""
    own = topic.get_config().head.to_dict()
    return own | {"dropout": dropout} | changes
