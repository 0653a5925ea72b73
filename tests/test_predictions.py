"""Tables, GLUE's files, and records from lines."""

import pytest
from task_examples import CHOICE, PAIR, SPAN, TAGGING

from data.labelled import Record
from errors import UserError
from tasks import KINDS, glue, lines, predictions
from tasks.encoding import Task


def predicted(values, **fields):
    for place, value in enumerate(values):
        columns = {name: column[place] for name, column in fields.items()}
        yield Record(columns, f"f, line {place}"), value


def test_glue_wants_names_numbers_and_places():
    scores = [{"score": 5.2}, {"score": -0.1}, {"score": 2.34567}]
    assert [*glue.lines("stsb", (), predicted(scores))] == [
        "index\tprediction",
        "0\t5.000",
        "1\t0.000",
        "2\t2.346",
    ]
    names = ("entailment", "not_entailment")
    found = [{"label": "not_entailment"}, {"label": "entailment"}]
    lines = glue.lines("rte", names, predicted(found, index=["1", "0"]))
    assert [*lines][1:] == ["0\tentailment", "1\tnot_entailment"]
    # WNLI's order of the same names is the other one
    lines = glue.lines("wnli", names[::-1], predicted(found))
    assert [*lines][1:] == ["0\t0", "1\t1"]
    with pytest.raises(UserError, match="takes entailment or not_entailment; the run"):
        next(glue.lines("rte", ("no", "yes"), predicted([])))
    with pytest.raises(UserError, match="the idx '1' is no number, or stands there"):
        next(glue.lines("rte", names, predicted(found, idx=["1", "1"])))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", "ab    |"),
        ("a b\tc\nd", "a b c…|"),
        ("정치", "정치  |"),
        ("정치면", "정치면|"),
        ("정치면이", "정치 …|"),
        ("e\u0301" * 6, "e\u0301" * 6 + "|"),
    ],
)
def test_table_cells_are_cut_and_padded_by_columns_of_the_terminal(text, expected):
    row = {"text": text, "end": "|"}
    cells = predictions._line(row, [("text", 6), ("end", 1)])
    assert cells.replace("  |", "|") == expected


TAGS = ("B-X", "O")


def test_a_table_has_a_row_a_word_and_parts_sentences():
    shown = {"tags": ["O", "B-X"], "probabilities": [0.9, 0.75], "gold": ["O", "O"]}
    words = [["one", "two"]] * 2
    rows = predicted([shown, shown], words=words)
    table = [*predictions.table(KINDS["tagging"], TAGGING, TAGS, rows)]
    assert table == [
        "tag    probability  gold   text",
        *("O      0.900        O      one", "B-X    0.750        O      two", ""),
        *("O      0.900        O      one", "B-X    0.750        O      two", ""),
    ]


def test_gold_is_shown_where_the_first_record_has_it():
    known = {"label": "no", "probabilities": {"no": 0.75, "yes": 0.25}, "gold": "yes"}
    unknown = {name: value for name, value in known.items() if name != "gold"}
    texts = {"premise": ["a", "b"], "hypothesis": ["c", "d"]}
    kind, labels = KINDS["classification"], ("no", "yes")
    table = [
        *predictions.table(kind, PAIR, labels, predicted([known, unknown], **texts))
    ]
    assert [line.split() for line in table] == [
        ["label", "probability", "next", "gold", "text"],
        ["no", "0.750", "yes", "0.250", "yes", "a", "|", "c"],
        ["no", "0.750", "yes", "0.250", "b", "|", "d"],
    ]


def test_gold_is_as_wide_as_its_labels():
    shown = {"label": "no", "probabilities": {"no": 0.75, "yes": 0.25}}
    found = [shown | {"gold": gold} for gold in ("no", "positive", "x" * 30)]
    texts = {"premise": ["a"] * 3, "hypothesis": ["b"] * 3}
    kind, rows = KINDS["classification"], predicted(found, **texts)
    header, _, known, long = predictions.table(kind, PAIR, ("no", "yes"), rows)
    assert header.index("text") - header.index("gold") == predictions.LABEL_WIDTH + 2
    assert " positive " in known and " " + "x" * 23 + "… " in long


# Lines


def record_of(texts, task, labels=("1", "2")):
    kind = KINDS[task.kind]
    line = lines.line_task(kind, task)
    return lines.line_record(texts, kind, line, labels, "line 1").fields


def test_a_line_has_the_texts_in_the_order_of_its_kind():
    assert record_of(["a", "b"], PAIR) == {"premise": "a", "hypothesis": "b"}
    assert record_of(["a b"], TAGGING) == {"words": ["a", "b"]}
    assert record_of(["q", "c"], SPAN) == {"question": "q", "context": "c"}
    assert record_of(["c", "q", "a", "b"], CHOICE) == {
        "context": "c",
        "question": "q",
        "choices": ["a", "b"],
    }
    with pytest.raises(UserError, match=r"line 1: 1 text\(s\).* takes 4 .*answer 1"):
        record_of(["c"], CHOICE)


def test_a_choice_joins_its_columns_in_a_line():
    task = Task("choice", ("a", "b"), "label", ("1", "2"), (), ("c", "d"))
    assert record_of(["x", "y", "z"], task) == {"a": "x", "c": "y", "d": "z"}


def test_flags_say_the_same_as_a_line():
    given = {"text": "c", "question": "q", "answers": ["a", "b"]}
    assert lines.flag_texts(given, KINDS["choice"]) == ["c", "q", "a", "b"]
    assert lines.flag_texts({"text": "c", "question": "q"}, KINDS["span"]) == ["q", "c"]
    given = {"text": "a", "text_b": "b"}
    assert lines.flag_texts(given, KINDS["similarity"]) == ["a", "b"]
