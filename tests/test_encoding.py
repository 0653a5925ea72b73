"""Encodings of records as literals, what is cut, and bad records."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from task_examples import (
    CHOICE,
    CLS,
    CONTEXT,
    DELIMITER,
    EXTRACT,
    PAD,
    PAIR,
    PIECES_OF_CONTEXT,
    SEP,
    SIMILARITY,
    SPAN,
    START,
    TAGGING,
    TOPIC,
    UNK,
    A,
    B,
    C,
    D,
    E,
    G,
    Q,
    X,
    Y,
    encode,
    good,
    label_names,
    letters,
    one_row,
    records,
    spans,
)

from configs.finetune import squad, topic
from data import labelled, tokenizer_training, tokenizers
from data.labelled import Record
from errors import UserError
from tasks import KINDS, answers, encoding, predictions, splits
from tasks.encoding import Task


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters(tmp_path_factory.mktemp("tokenizer"))


# Encodings, as literal batches


def test_classification_encoder(tokenizer):
    rows = records(
        {"text": "a bxy", "label": "pos"},
        {"text": "c", "label": "neg"},
        {"text": "d e", "label": "pos"},
    )
    examples = encode(rows, TOPIC, tokenizer, "bert")
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
    batch = one_row(encode(rows, TOPIC, tokenizer, "gpt"), length=8, slots=2)
    assert batch == {
        "tokens": [[START, A, B, EXTRACT, START, C, EXTRACT, PAD]],
        "segment_ids": [[1, 1, 1, 1, 2, 2, 2, 0]],
        "positions": [[0, 1, 2, 3, 0, 1, 2, 0]],
        "readout_positions": [[[3], [6]]],
        "labels": [[1, 0]],
        "weights": [[1, 1]],
        "example_ids": [[0, 1]],
    }


def test_pairs(tokenizer):
    rows = records({"premise": "a b", "hypothesis": "c", "label": "yes"})
    encoder = one_row(encode(rows, PAIR, tokenizer, "bert"), length=6, slots=1)
    assert encoder["tokens"] == [[CLS, A, B, SEP, C, SEP]]
    assert encoder["token_types"] == [[0, 0, 0, 0, 1, 1]]
    assert encoder["readout_positions"] == [[[0]]]
    assert encoder["labels"] == [[1]]
    decoder = one_row(encode(rows, PAIR, tokenizer, "gpt"), length=6, slots=1)
    assert decoder["tokens"] == [[START, A, B, DELIMITER, C, EXTRACT]]
    assert decoder["readout_positions"] == [[[5]]]


def test_similarity(tokenizer):
    rows = records(
        {"one": "a b", "two": "c", "score": "2.5"},
        {"one": "d", "two": "e", "score": "0"},
    )
    encoder = one_row(encode(rows, SIMILARITY, tokenizer, "bert"), 11, slots=2)
    assert encoder["readout_positions"] == [[[0], [6]]]
    assert encoder["scores"] == [[2.5, 0]]
    assert "labels" not in encoder
    decoder = one_row(encode(rows, SIMILARITY, tokenizer, "gpt"), 22, slots=2)
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
    encoder = encode(records(row, other), CHOICE, tokenizer, "bert")
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
    decoder = encode(records(row, other), CHOICE, tokenizer, "gpt")
    batch = one_row(decoder, length=29, slots=2)
    assert batch["tokens"][0][:15] == [
        *(START, A, B, Q, DELIMITER, C, EXTRACT),
        *(START, A, B, Q, DELIMITER, D, E, EXTRACT),
    ]
    assert batch["readout_positions"] == [[[6, 14], [21, 28]]]


def test_choice_with_a_column_for_each_answer_and_no_question(tokenizer):
    task = Task("choice", ("s1", "s2"), "right", ("1", "2"), (), ("e1", "e2"))
    rows = records({"s1": "a", "s2": "b", "e1": "c", "e2": "d", "right": "2"})
    batch = one_row(encode(rows, task, tokenizer, "gpt"), length=12, slots=1)
    assert batch["tokens"][0][:6] == [START, A, B, DELIMITER, C, EXTRACT]
    assert batch["labels"] == [[1]]


def test_a_choice_loses_the_end_of_its_context_only(tokenizer):
    row = {"context": "a b c d e f", "question": "q", "choices": ["b", "c d"]}
    rows = records(row | {"answer": "0"})
    task = Task(
        "choice", ("context",), "answer", ("0", "1"), ("question",), ("choices",)
    )
    examples = encode(rows, task, tokenizer, "bert", max_length=8, labels=("0", "1"))
    assert one_row(examples, length=16, slots=1)["tokens"] == [
        [CLS, A, B, C, SEP, Q, B, SEP, CLS, A, B, SEP, Q, C, D, SEP]
    ]
    assert examples.cuts == ["f.tsv, line 2: 6 to 2 pieces of context"]


@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_tagging_labels_first_pieces(tokenizer, family):
    first, last = (CLS, SEP) if family == "bert" else (START, EXTRACT)
    rows = records(
        {"words": ["axy", "b"], "tags": ["B-LOC", "O"]},
        {"words": ["\u200b", "c"], "tags": ["O", "B-LOC"]},
    )
    batch = one_row(encode(rows, TAGGING, tokenizer, family), length=11, slots=2)
    assert batch["tokens"] == [[first, A, X, Y, B, last, first, UNK, C, last, PAD]]
    assert batch["labels"] == [[0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]]  # B-LOC, O
    assert batch["weights"] == [[0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0]]
    assert batch["word_ids"] == [[0, 1, 0, 0, 2, 0, 0, 1, 2, 0, 0]]
    assert batch["example_ids"] == [[0, 1]]
    assert ("token_types" in batch) == (family == "bert")


def test_words_whose_tag_is_minus_100_are_not_counted(tokenizer):
    rows = records({"words": ["a", "b", "c"], "tags": ["B-X", "-100", "O"]})
    assert label_names(rows, TAGGING) == ("B-X", "O")
    arrays = encode(rows, TAGGING, tokenizer, "bert").encoded[0].arrays
    assert arrays["labels"].tolist() == [0, 0, 0, 1, 0]
    assert arrays["weights"].tolist() == [0, 1, 0, 1, 0]
    assert arrays["word_ids"].tolist() == [0, 1, 2, 3, 0]


def test_words_beyond_the_window_are_reported(tokenizer):
    words = ["a", "b", "cxyxyxy", "d"]
    rows = records({"words": words, "tags": ["O"] * 4})
    examples = encode(rows, TAGGING, tokenizer, "bert", max_length=8)
    batch = one_row(examples, length=8, slots=1)
    assert batch["tokens"] == [[CLS, A, B, C, X, Y, X, SEP]]
    assert batch["word_ids"] == [[0, 1, 2, 3, 0, 0, 0, 0]]
    assert examples.cuts == ["f.tsv, line 2: 3 of 4 words are in view"]
    report = encoding.cut_report(examples, 8)
    assert report.startswith("max_length=8 cost 1 record(s) text or answer: f.tsv")


def test_words_of_byte_level_bpe_begin_with_a_space(tokenizer):
    byte_bpe = tokenizer_training.train(
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
    examples = encode(rows, TAGGING, byte_bpe, "gpt")
    tokens = examples.encoded[0].arrays["tokens"]
    assert byte_bpe.decode(tokens[1:-1]) == " the fox"
    assert encoding.word_prefix(tokenizer) == ""


def test_contexts_that_questions_share_are_cleaned_once(tokenizer, monkeypatch):
    cleaned, without_spaces = [], answers.without_spaces

    def counted(text, offsets):
        cleaned.append(text)
        return without_spaces(text, offsets)

    monkeypatch.setattr(answers, "without_spaces", counted)
    row = {"question": "q", "answers": spans()}
    texts = ["a b", "c", "a b", "a b"]
    rows = records(*(row | {"context": text} for text in texts))
    assert len(encode(rows, SPAN, tokenizer, "bert").encoded) == 4
    assert cleaned == ["a b", "c"]


def test_span(tokenizer):
    rows = records(
        {"question": "q", "context": CONTEXT, "answers": spans(("A bxy", 0))},
        {"question": "q", "context": "a b", "answers": spans()},
    )
    settings = {"max_length": 9, "stride": 3, "labels": ()}
    encoder = encode(rows, SPAN, tokenizer, "bert", **settings)
    shown = [example.arrays["tokens"].tolist() for example in encoder.encoded]
    assert shown == [
        [CLS, Q, SEP, *PIECES_OF_CONTEXT[0:5], SEP],
        [CLS, Q, SEP, *PIECES_OF_CONTEXT[3:8], SEP],
        [CLS, Q, SEP, *PIECES_OF_CONTEXT[6:10], SEP],
        [CLS, Q, SEP, A, B, SEP],
    ]
    assert [example.origin.record for example in encoder.encoded] == [0, 0, 0, 1]
    batch = one_row(encoder, length=32, slots=5)
    assert batch["token_types"][0][:9] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    # The answer is in the first window; the others, and no answer, point at [CLS].
    assert batch["starts"] == [[3, 9, 18, 26, 0]]
    assert batch["ends"] == [[6, 9, 18, 26, 0]]
    assert batch["weights"] == [[1, 1, 1, 1, 0]]
    decoder = encode(rows, SPAN, tokenizer, "gpt", **settings)
    assert decoder.encoded[0].arrays["tokens"].tolist() == [
        *(START, Q, DELIMITER),
        *(A, B, X, Y, C, EXTRACT),
    ]
    # No answer is at the last token, which alone has read all; before at the first.
    nulls = {"readout": [8, 8, 7, 5], "first": [0, 0, 0, 0]}
    for null_position, expected in nulls.items():
        decoder = encode(
            rows, SPAN, tokenizer, "gpt", null_position=null_position, **settings
        )
        found = [(one.places["starts"], one.places["ends"]) for one in decoder.encoded]
        assert found == [(3, 6), *((null, null) for null in expected[1:])]
        assert [one.origin.null for one in decoder.encoded] == expected


def test_answers_in_no_window_are_said_and_left_out(tokenizer):
    """Windows of 5 pieces, each 3 further on: pieces 2 to 6 are in none."""
    answers = spans(("xy c, D", 3)), spans(("xy c", 3))
    row = {"question": "q", "context": CONTEXT}
    rows = records(*(row | {"answers": answer} for answer in answers))
    settings = {"max_length": 9, "stride": 3, "labels": ()}
    examples = encode(rows, SPAN, tokenizer, "bert", **settings)
    (cut,) = examples.cuts
    assert cut == (
        "f.tsv, line 2: the answer, 5 pieces, is in no window of 5, and the question "
        "is left out"
    )
    weights = [one.slot["weights"] for one in examples.encoded]
    assert weights == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("answer", "begin", "places"),
    [("A", 0, (3, 3)), ("G", 15, (12, 12)), ("xy c", 3, (5, 7)), ("x", 3, (5, 5))],
)
def test_answers_at_the_ends_and_inside_words(tokenizer, answer, begin, places):
    row = {"question": "q", "context": CONTEXT, "answers": spans((answer, begin))}
    examples = encode(records(row), SPAN, tokenizer, "bert", labels=())
    found = examples.encoded[0].places
    assert (found["starts"], found["ends"]) == places


def test_long_questions_are_cut(tokenizer):
    row = {"question": "a b c d e f", "context": "g", "answers": spans()}
    examples = encode(records(row), SPAN, tokenizer, "bert", labels=())
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
        changes = {"labelled": False, "labels": ("0", "1")}
        examples = encode(rows, task, tokenizer, "gpt", **changes)
        batch = one_row(examples, length=16, slots=2)
        assert not np.any(batch["weights"])
        assert batch["example_ids"] == [[0, -1]]


def test_ids_that_records_share_are_said():
    rows = records({"id": "a"}, {"id": "b"}, {"id": "a"}, {"id": ["c"]}, {"x": "a"})
    said = splits.repeated_id(rows)
    assert said.startswith("1 id of several records each")
    assert said.endswith("'a' at f.tsv, line 2 and f.tsv, line 4")
    assert not splits.repeated_id(rows[:2])
    assert not splits.repeated_id(records({"x": "a"}, {"x": "a"}))


def test_labels_sort_as_numbers_where_they_are():
    rows = records(*({"text": "a", "label": str(n)} for n in (10, 9, -1, 10)))
    assert label_names(rows, TOPIC) == ("-1", "9", "10")
    rows += records({"text": "a", "label": "x"})
    assert label_names(rows, TOPIC) == ("-1", "10", "9", "x")


@pytest.mark.parametrize("room", [6, 7])
def test_longest_first_as_bert_pops(room):
    for a in range(9):
        for b in range(9):
            kept = [a, b]
            while sum(kept) > room:
                kept[0 if kept[0] > kept[1] else 1] -= 1
            assert encoding.longest_first(a, b, room) == tuple(kept)


def test_pairs_are_cut_longest_first(tokenizer):
    row = {"premise": "a b c d e f g", "hypothesis": "d e", "label": "no"}
    examples = encode(records(row), PAIR, tokenizer, "gpt", max_length=8)
    assert one_row(examples, length=8, slots=1)["tokens"] == [
        [START, A, B, C, DELIMITER, D, E, EXTRACT]
    ]
    assert examples.cuts == ["f.tsv, line 2: [7, 2] to [3, 2] pieces"]


@pytest.mark.parametrize("family", ["bert", "gpt"])
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
        (SIMILARITY, {"score": "1e39"}, "'1e39', more than 1e[+]15.*: scale"),
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
            {"answers": spans(("c", 2))},
            "'c' does not stand at character 2.*'b'",
        ),
        (SPAN, {"answers": spans(("c", -1))}, "does not stand at character -1"),
        (SPAN, {"answers": spans(("", 2))}, "'' does not stand at character 2"),
        (SPAN, {"answers": "b"}, "where .* is expected"),
        (SPAN, {"context": " "}, "column 'context' is empty"),
    ],
)
def test_bad_records_are_named(tokenizer, task, change, message):
    bad = {key: v for key, v in (good(task) | change).items() if v is not None}
    labels = () if task in (SIMILARITY, SPAN) else ("0", "1")
    rows = [Record(bad, "dev.tsv, line 7")]
    with pytest.raises(UserError, match=message) as error:
        encode(rows, task, tokenizer, "bert", labels=labels)
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
    labels = label_names(splits["train"], task)
    with pytest.raises(UserError, match=message):
        encode(splits["dev"], task, tokenizer, "bert", labels=labels)


@pytest.mark.parametrize(("tags", "rest"), [(["B-X", "O"], "O"), (["V", "N"], "N")])
def test_words_out_of_view_get_a_tag_that_is_a_label(tokenizer, tags, rest):
    rows = records({"words": ["a"] * 8, "tags": tags * 4})
    examples = encode(rows, TAGGING, tokenizer, "bert", max_length=8)
    first = examples.labels.index(tags[0])
    scores = np.full((6, 2), -50.0)
    scores[:, first] = 50.0
    kind = KINDS[TAGGING.kind]
    (predicted,) = predictions.predict(kind, examples, rows, {0: scores}, TAGGING)
    assert predicted["tags"] == [tags[0]] * 6 + [rest] * 2
    assert predicted["probabilities"] == [1.0] * 6 + [0.0] * 2


def test_bad_settings_are_named(tokenizer):
    def make(**spec):
        config = topic.get_config()
        config.task.update(spec)
        return splits.make_task(config, KINDS[config.task.kind])

    assert make() == TOPIC
    with pytest.raises(UserError, match=r"task.text_columns=.'text',.*takes 2 of them"):
        make(kind="similarity")
    with pytest.raises(UserError, match=r"task.answer_columns=..: .*takes 1 to 99"):
        make(kind="choice")
    with pytest.raises(UserError, match=r"task.question_columns=.'q',.*takes 0 of"):
        make(question_columns=("q",))
    with pytest.raises(UserError, match="has a name twice"):
        make(labels=("x", "x"))
    with pytest.raises(UserError, match="max_length=3 must be at least"):
        encode(records(good(TOPIC)), TOPIC, tokenizer, "bert", max_length=3)


def test_a_task_has_the_settings_that_its_kind_reads():
    config = squad.get_config()
    task = splits.make_task(config, KINDS["span"])
    assert task.own["data.window_stride"] == config.data.window_stride == 48
    assert task.own["task.null_answers"] is False
    (fits,) = KINDS["span"].rules
    assert fits(config) is None
    config.data.max_length = config.data.max_question_length + 3
    assert "no room for context beside 32 pieces" in fits(config)
    config.data.max_length += 48
    assert fits(config) is None
    config.data.max_length -= 1  # answers between windows would be in none
    assert "data.window_stride=48 is more than the 47 pieces of context" in fits(config)


def test_a_family_needs_its_special_tokens(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]))
    bert = tokenizers.load(str(path))
    with pytest.raises(
        UserError, match=r"start, delimiter, extract; .* no delimiter, extract, st"
    ):
        encoding.make_frame(bert, {"family": "gpt"})


def test_all_columns_that_a_file_lacks_are_named_with_their_settings(tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("sentence,sentiment\na good film,yes\na bad film,no\n")
    test.write_text("text\na film\n")
    data = {"train": str(train), "eval": "", "eval_fraction": 0.5, "test": str(test)}
    data = ConfigDict(data | {"train_examples": 0})
    with pytest.raises(UserError) as raised:
        splits.read(data, 0, KINDS["classification"], TOPIC)
    message = str(raised.value)
    assert (
        "train.csv has no column 'label' (task.label_column) and no 'text'" in message
    )
    assert "(task.text_columns); its columns are 'sentence', 'sentiment'" in message
    assert "line" not in message
    train.write_text("text,label\na good film,yes\na bad film,no\n")
    assert splits.read(data, 0, KINDS["classification"], TOPIC)[0]["test"]
    test.write_text("txt,label\na film,yes\n")
    with pytest.raises(UserError, match=r"test.csv has no column 'text' \(task.text_c"):
        splits.read(data, 0, KINDS["classification"], TOPIC)
