"""Windows over long contexts, and answers out of them."""

import dataclasses

import numpy as np
import pytest
from task_examples import CONTEXT, SPAN, encode, letters, records, spans

from data import tokenizer_training, tokenizers
from tasks import answers, packing, span


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters(tmp_path_factory.mktemp("tokenizer"))


# Windows and answers


def test_window_spans():
    assert answers.window_spans(5, room=5, stride=2) == [(0, 5)]
    assert answers.window_spans(6, room=5, stride=2) == [(0, 5), (2, 6)]
    assert answers.window_spans(9, room=3, stride=100) == [(0, 3), (3, 6), (6, 9)]


def test_max_context_as_in_berts_comment():
    """run_squad.py: "bought" has 4 and 0 pieces around it in B, 1 and 3 in C."""
    words = "the man went to the store and bought a gallon of milk".split()
    places = [(0, 5), (3, 8), (6, 11)]
    shown = [
        [word for word, is_max in zip(words[a:b], best, strict=True) if is_max]
        for (a, b), best in zip(places, answers.max_context(places), strict=True)
    ]
    assert shown == [
        ["the", "man", "went", "to"],
        ["the", "store", "and"],
        ["bought", "a", "gallon", "of"],
    ]


def test_max_context_prefers_the_longer_window_then_the_earlier():
    shown = [best.tolist() for best in answers.max_context([(0, 3), (2, 7)])]
    assert shown == [[True, True, False], [True] * 5]
    shown = [best.tolist() for best in answers.max_context([(0, 3), (2, 5)])]
    assert shown == [[True] * 3, [False, True, True]]


def peaked(size, **peaks):
    """Scores of 0 but at the places named p<place>."""
    scores = np.zeros(size)
    for name, value in peaks.items():
        scores[int(name[1:])] = value
    return scores


@pytest.fixture
def windows(tokenizer):
    row = {"question": "q", "context": CONTEXT, "answers": spans()}
    settings = {"max_length": 9, "stride": 3, "labels": ()}
    examples = encode(records(row), SPAN, tokenizer, "bert", **settings)
    return [example.origin for example in examples.encoded]


def predict(windows, starts, ends, n_best=20, max_answer_pieces=30):
    return answers.best_answers(
        CONTEXT,
        windows,
        starts,
        ends,
        n_best=n_best,
        max_answer_pieces=max_answer_pieces,
    )


def test_answers_are_cut_from_the_original_text(tokenizer):
    row = {"question": "q", "context": CONTEXT, "answers": spans()}
    (example,) = encode(records(row), SPAN, tokenizer, "bert", labels=()).encoded
    window = example.origin
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


def test_no_answer_is_read_where_the_window_says(windows):
    at_last = [dataclasses.replace(window, null=8) for window in windows[:2]]
    starts, ends = [peaked(9, p8=4), peaked(9, p8=3)], [peaked(9, p8=1), peaked(9)]
    assert predict(at_last, starts, ends).null_score == 3
    assert predict(windows[:2], starts, ends).null_score == 0


def test_window_scores_find_their_way_home(tokenizer):
    rows = records(
        {"question": "q", "context": CONTEXT, "answers": spans()},
        {"question": "q", "context": "a b", "answers": spans()},
    )
    settings = {"max_length": 9, "stride": 3, "labels": ()}
    examples = encode(rows, SPAN, tokenizer, "bert", **settings)
    shape = packing.RowShape(rows=3, length=16, slots=2, packed=True)
    (batch,) = packing.evaluation_batches(examples, shape)
    logits = batch["tokens"].astype(np.float32)
    scores = np.stack([logits, -logits], axis=-1)
    found = {index: own.T.tolist() for index, own in span.found(batch, scores)}
    assert sorted(found) == [0, 1, 2, 3]
    for index, (start, end) in found.items():
        tokens = examples.encoded[index].arrays["tokens"]
        assert start == tokens.tolist()
        assert end == (-tokens).tolist()


# All but what a word's punctuation belongs to.
@pytest.mark.parametrize(
    "algorithm", sorted({*tokenizer_training.ALGORITHMS} - {"symbols"})
)
def test_offsets_of_every_tokenizer(algorithm):
    text = "  The naïve FOX, 한국어 😀 \n ran."
    trained = tokenizer_training.train(
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
    offsets = answers.without_spaces(text, offsets)
    for word in ("The", "naïve", "FOX", "한국어", "😀", "ran"):
        begin = text.index(word)
        first, last = answers.answer_pieces(offsets, begin, begin + len(word))
        assert text[offsets[first, 0] : offsets[last, 1]] == word
    covered = {i for begin, end in offsets.tolist() for i in range(begin, end)}
    assert covered == {i for i, c in enumerate(text) if not c.isspace()}
