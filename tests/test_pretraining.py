"""Ways to pre-train: literal examples, masking statistics, order, hosts, losses."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

import models
from data import corpora, draws, shards, tokenizers, windows
from data.draws import Draws
from errors import UserError
from pretraining import (
    PRETRAININGS,
    bidirectional_lm,
    check_model,
    check_tokenizer,
    way_of,
)
from pretraining.corpus import load_or_train_tokenizer
from pretraining.masked_words import make_masking
from pretraining.next_sentence import cut_into_pairs, truncation
from pretraining.next_words import CausalLmExamples

ROOT = Path(__file__).parents[1]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"]
PIECES += [*"abcdefghijklmnopqrstuvwxyz", "##x", "##y", "##z"]
PAD, UNK, CLS, SEP, MASK, UNUSED = range(6)
A, B, C, D, E, F = range(6, 12)
X, Y, Z = range(32, 35)
SPECIAL = {PAD, UNK, CLS, SEP, MASK}
NORMAL = list(range(A, Z + 1))
BERT = {
    "mask_rate": 0.15,
    "mask_token_rate": 0.8,
    "random_token_rate": 0.1,
    "max_predictions": 20,
    "whole_word": False,
}
PAIRS = BERT | {"short_seq_prob": 0.1, "random_next_rate": 0.5}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return tokenizers.load(str(path))


@pytest.fixture
def shards_of(tmp_path, tokenizer, monkeypatch):
    """Makes the train split of literal documents; "q" is held out."""
    monkeypatch.setattr(shards, "is_heldout", lambda document, _: document == "q")

    def make(documents, framing):
        folder = tmp_path / f"shards{len(list(tmp_path.iterdir()))}"
        path = tmp_path / f"{folder.name}.txt"
        path.write_text("\n\n".join([*documents, "q"]))
        corpus = corpora.Corpus(
            source=str(path), text_field="text", document_boundary="blank_line"
        )
        shards.write_shards(
            corpus, tokenizer, folder, heldout_fraction=0.1, framing=framing
        )
        return shards.open_shards(folder, "train")

    return make


@pytest.fixture
def masked_framing(tokenizer):
    return PRETRAININGS["masked_lm"].framing(tokenizer)


@pytest.fixture
def pair_framing(tokenizer):
    return PRETRAININGS["next_sentence"].framing(tokenizer)


def masked_examples(stream, tokenizer, sequence_length, **settings):
    objective = ConfigDict(BERT | settings)
    way = PRETRAININGS["masked_lm"]
    return way.examples(objective, tokenizer, sequence_length)(stream)


def pair_examples(stream, tokenizer, sequence_length, **settings):
    objective = ConfigDict(PAIRS | settings)
    way = PRETRAININGS["next_sentence"]
    return way.examples(objective, tokenizer, sequence_length)(stream)


def random_documents(count, max_words, seed=0, pieces="abcde"):
    rng = np.random.default_rng(seed)
    return [
        " ".join(
            letter + "".join(rng.choice(["", "x", "y", "z"], 2))
            for letter in rng.choice(list(pieces), rng.integers(1, max_words))
        )
        for _ in range(count)
    ]


def rows(examples, indices, seed=0):
    """Some examples in epoch 0 as a batch, all that is drawn for them by the seed."""
    indices = np.array(indices)
    starts = draws.starts_of(draws.VISITS, seed, rows=np.arange(len(indices)))
    return examples.batch(
        windows.Visits(indices, np.zeros_like(indices), 0, Draws(starts))
    )


def row_of(batch, row):
    return {name: array[row] for name, array in batch.items()}


def one(examples, index, seed=0):
    return row_of(rows(examples, [index], seed), 0)


def original(example):
    """The tokens of a masked example before it was masked."""
    tokens = example["tokens"].copy()
    used = example["weights"] > 0
    tokens[example["predict_positions"][used]] = example["targets"][used]
    return tokens


def as_lists(example):
    return {name: array.tolist() for name, array in example.items()}


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


# Causal


def test_causal_windows(shards_of):
    stream = shards_of(["a b c", "d", "e f a b"], shards.Framing(None, SEP, False))
    examples = CausalLmExamples(stream, 8)
    assert len(examples) == 2
    assert as_lists(one(examples, 0)) == {
        "tokens": [A, B, C, SEP, D, SEP, E, F],
        "segment_ids": [1, 1, 1, 1, 2, 2, 3, 3],
        "positions": [0, 1, 2, 3, 0, 1, 0, 1],
        "targets": [B, C, SEP, 0, SEP, 0, F, A],
        "weights": [1, 1, 1, 0, 1, 0, 1, 1],
    }
    assert as_lists(one(examples, 1)) == {
        "tokens": [A, B, SEP, 0, 0, 0, 0, 0],
        "segment_ids": [1, 1, 1, 0, 0, 0, 0, 0],
        "positions": [0, 1, 2, 0, 0, 0, 0, 0],
        "targets": [B, SEP, 0, 0, 0, 0, 0, 0],
        "weights": [1, 1, 0, 0, 0, 0, 0, 0],
    }


@pytest.mark.parametrize("sequence_length", [8, 13, 64, 1000])
def test_causal_predicts_every_token_with_a_predecessor_once(
    shards_of, sequence_length
):
    stream = shards_of(random_documents(40, 12), shards.Framing(None, SEP, False))
    examples = CausalLmExamples(stream, sequence_length)
    whole = stream.tokens.astype(np.int32)
    predicted = np.zeros(stream.num_tokens, int)
    for index in range(len(examples)):
        example = one(examples, index)
        places = np.flatnonzero(example["weights"]) + index * sequence_length + 1
        predicted[places] += 1
        targets = example["targets"][example["weights"] > 0]
        np.testing.assert_array_equal(targets, whole[places])
    has_predecessor = np.ones(stream.num_tokens, int)
    has_predecessor[stream.documents[:-1]] = 0
    np.testing.assert_array_equal(predicted, has_predecessor)


# Masked, packed full


def test_masked_windows(shards_of, tokenizer, masked_framing):
    stream = shards_of(["a b c", "d", "e f a b"], masked_framing)
    examples = masked_examples(stream, tokenizer, 8, max_predictions=3, mask_rate=0.25)
    assert len(examples) == 2
    first, second = (one(examples, index) for index in range(2))
    assert original(first).tolist() == [CLS, A, B, C, SEP, CLS, D, SEP]
    assert first["segment_ids"].tolist() == [1, 1, 1, 1, 1, 2, 2, 2]
    assert first["positions"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    # It begins within the second document, at its [SEP].
    assert original(second).tolist() == [CLS, SEP, CLS, E, F, A, B, SEP]
    assert second["segment_ids"].tolist() == [1, 1, 2, 2, 2, 2, 2, 2]
    assert second["positions"].tolist() == [0, 1, 0, 1, 2, 3, 4, 5]
    for example in (first, second):
        assert example["token_types"].tolist() == [0] * 8
        assert example["weights"].tolist() == [1, 1, 0]  # round(8 * .25) of 3 slots
        assert example["predict_positions"][2] == example["targets"][2] == 0
        assert example["tokens"].dtype == example["targets"].dtype == np.int32
        assert example["weights"].dtype == np.float32


def test_masked_windows_cover_the_stream(shards_of, tokenizer, masked_framing):
    stream = shards_of(random_documents(40, 30), masked_framing)
    whole = stream.tokens.astype(np.int32)
    document = np.searchsorted(stream.documents, np.arange(len(whole)), side="right")
    examples = masked_examples(stream, tokenizer, 16)
    for index in range(len(examples)):
        example = one(examples, index, index)
        tokens, start = original(example), index * 15
        if whole[start] != CLS:
            start -= 1
        size = np.count_nonzero(example["segment_ids"])
        assert tokens[0] == CLS
        np.testing.assert_array_equal(tokens[1:size], whole[start + 1 : start + size])
        assert (tokens[size:] == PAD).all()
        of_document = document[start : start + size]
        of_document[0] = document[max(start, index * 15)]
        np.testing.assert_array_equal(
            example["segment_ids"][:size], of_document - of_document[0] + 1
        )
        assert size == 16 or index == len(examples) - 1


def test_number_to_predict_counts_special_tokens_as_bert_does(
    shards_of, tokenizer, masked_framing
):
    stream = shards_of(["a " * 400, "b"], masked_framing)
    for length, quota in ((64, round(9.6)), (100, 15), (128, 19), (200, 20)):
        examples = masked_examples(stream, tokenizer, length)
        example = one(examples, 0)
        assert example["weights"].sum() == quota
        assert example["weights"].shape == (20,)


@pytest.fixture
def many_predictions(shards_of, tokenizer, masked_framing):
    """2,000 masked rows of one stream: about 38,000 predictions."""

    def draw(**settings):
        stream = shards_of(random_documents(60, 60), masked_framing)
        examples = masked_examples(stream, tokenizer, 128, **settings)
        batches = windows.training_batches(examples, batch_size=500, seed=3)
        rows = [batches[step] for step in range(4)]
        return {name: np.concatenate([b[name] for b in rows]) for name in rows[0]}

    return draw


def test_masking_statistics(many_predictions):
    batch = many_predictions()
    row, slot = np.nonzero(batch["weights"])
    positions = batch["predict_positions"][row, slot]
    targets = batch["targets"][row, slot]
    shown = batch["tokens"][row, positions]
    count = len(shown)
    assert count > 30_000
    # Bounds of 4.5 standard deviations. A random piece is the true one 1 time in 29.
    assert len(NORMAL) == 29
    for share, expected in (
        (np.mean(shown == MASK), 0.8),
        (np.mean(shown == targets), 0.1 + 0.1 / 29),
        (np.mean((shown != MASK) & (shown != targets)), 0.1 * 28 / 29),
    ):
        bound = 4.5 * np.sqrt(expected * (1 - expected) / count)
        assert abs(share - expected) < bound
    # Never special; random replacements are neither special nor unused, and uniform.
    assert not SPECIAL & set(targets.tolist())
    random = shown[(shown != MASK) & (shown != targets)]
    rarest, commonest = np.bincount(random, minlength=35)[F : A + 26].min(), random.size
    assert set(random.tolist()) == set(NORMAL)
    assert rarest > 0.6 * commonest / 29
    # Positions are sorted, distinct, and the unpredicted tokens are untouched.
    for number in range(100):
        used = batch["predict_positions"][number][batch["weights"][number] > 0]
        assert (np.diff(used) > 0).all()
        rest = np.setdiff1d(np.arange(128), used)
        assert MASK not in batch["tokens"][number][rest]


def test_diffusion_hides_any_number_of_words(shards_of, tokenizer, masked_framing):
    """Evenly from one to all of a row's, each place alike; a row counts its words."""
    stream = shards_of(random_documents(300, 12), masked_framing)
    way = PRETRAININGS["masked_diffusion"]
    examples = way.examples(ConfigDict(), tokenizer, 16)(stream)
    plain = masked_examples(stream, tokenizer, 16).windows
    indices = np.arange(len(examples)).repeat(20)
    batch, before = rows(examples, indices), plain.rows(indices)
    special = [*tokenizer.special_ids.values()]
    is_word = (before["segment_ids"] > 0) & ~np.isin(before["tokens"], special)
    words, hidden = is_word.sum(axis=1), (batch["weights"] > 0).sum(axis=1)
    np.testing.assert_allclose(batch["weights"].sum(axis=1), words, rtol=1e-5)
    assert (hidden >= 1).all() and (hidden <= words).all()
    is_masked = batch["tokens"] == tokenizer.special_ids["mask"]
    np.testing.assert_array_equal(is_masked.sum(axis=1), hidden)
    assert (is_masked <= is_word).all()
    for row in range(0, len(indices), 500):
        np.testing.assert_array_equal(
            original(row_of(batch, row)), before["tokens"][row]
        )
    common = words == np.bincount(words).argmax()
    counts = np.bincount(hidden[common])[1:]
    assert stats.chisquare(counts).pvalue > 1e-3
    share = is_masked[is_word].mean()
    assert abs(share - ((words + 1) / 2).sum() / words.sum()) < 0.01


def test_every_position_is_equally_likely(shards_of, tokenizer, masked_framing):
    stream = shards_of(["a b c d " * 40, "b"], masked_framing)
    examples = masked_examples(stream, tokenizer, 64)
    batch = rows(examples, [1] * 2000)
    drawn = np.bincount(batch["predict_positions"][batch["weights"] > 0], minlength=64)
    expected = 2000 * 10 / 63  # all but [CLS]
    assert drawn[0] == 0
    assert np.abs(drawn[1:] - expected).max() < 5 * np.sqrt(expected)


def test_mask_rates_are_settings(many_predictions):
    batch = many_predictions(mask_token_rate=0.0, random_token_rate=0.0, mask_rate=0.1)
    row, slot = np.nonzero(batch["weights"])
    positions = batch["predict_positions"][row, slot]
    np.testing.assert_array_equal(
        batch["tokens"][row, positions], batch["targets"][row, slot]
    )
    full = (batch["segment_ids"] > 0).all(axis=1)
    assert set(batch["weights"][full].sum(axis=1)) == {13.0}


def test_whole_words_share_one_fate(many_predictions):
    batch = many_predictions(whole_word=True)
    fates = set()
    for number in range(len(batch["tokens"])):
        row = row_of(batch, number)
        clean, shown = original(row), row["tokens"]
        begins = ~np.isin(clean, [X, Y, Z])
        begins |= np.roll(np.isin(clean, list(SPECIAL)), 1)  # a cut word, or a special
        word = np.cumsum(begins)
        used = row["predict_positions"][row["weights"] > 0]
        assert len(used) <= 19
        predicted = np.zeros(128, bool)
        predicted[used] = True
        for chosen in np.unique(word[used]):
            pieces = word == chosen
            assert predicted[pieces].all()
            masked = shown[pieces] == MASK
            assert masked.all() or not masked.any()
            if pieces.sum() == 3:
                kept = shown[pieces] == clean[pieces]
                fates.add("mask" if masked.all() else "same" if kept.all() else "rest")
    assert fates == {"mask", "same", "rest"}
    # What does not fit is skipped, so that the quota is nearly always filled.
    assert batch["weights"].sum(axis=1).mean() > 18.5


def test_a_special_token_ends_a_word(tokenizer):
    """And the rest of a cut word, at the beginning of a row, is one."""
    objective = ConfigDict(BERT | {"whole_word": True, "max_predictions": 3})
    masking = make_masking(objective, tokenizer)
    row = np.array([CLS, X, A, UNK, Y, B, Z, SEP], np.int32)
    batch = {
        "tokens": np.tile(row, (300, 1)),
        "segment_ids": np.ones((300, 8), np.int32),
    }
    for mask_rate, possible in (
        (1 / 8, {(1,), (2,), (4,)}),
        (2 / 8, {(1, 2), (1, 4), (2, 4), (5, 6)}),
        (3 / 8, {(1, 2, 4), (1, 5, 6), (2, 5, 6), (4, 5, 6)}),
    ):
        masking.mask_rate = mask_rate
        drawn = Draws(draws.starts_of(draws.VISITS, 0, rows=np.arange(300)))
        found = masking.mask(batch, drawn)
        count = round(8 * mask_rate)
        assert (found["weights"].sum(axis=1) == count).all()
        positions = found["predict_positions"][:, :count]
        assert {tuple(one) for one in positions.tolist()} == possible


def test_text_without_spaces_is_masked_piece_by_piece(tokenizer):
    """A word of more pieces than any row may predict; and where none of a row fits."""
    objective = ConfigDict(
        BERT | {"whole_word": True, "max_predictions": 3, "mask_rate": 0.3}
    )
    masking = make_masking(objective, tokenizer)
    rows = np.array(
        [
            [CLS, A, X, Y, Z, B, Y, C, Z, SEP],  # 4, 2 and 2 pieces, of which 3 at most
            [CLS, A, X, X, X, X, X, X, X, SEP],  # one of 8
            [CLS, A, X, Y, SEP, PAD, PAD, PAD, PAD, PAD],  # one of 3, and room for 2
            [CLS, A, X, B, SEP, PAD, PAD, PAD, PAD, PAD],  # B fits into 2, and A X
            [CLS, UNK, UNK, SEP, PAD, PAD, PAD, PAD, PAD, PAD],  # nothing to predict
        ],
        np.int32,
    )
    tokens = np.repeat(rows, 300, axis=0)
    batch = {"tokens": tokens, "segment_ids": (tokens != PAD).astype(np.int32)}
    drawn = Draws(draws.starts_of(draws.VISITS, 0, rows=np.arange(1500)))
    found = masking.mask(batch, drawn)
    chosen = [
        {
            tuple(places[weights > 0].tolist())
            for places, weights in zip(
                found["predict_positions"][first : first + 300],
                found["weights"][first : first + 300],
                strict=True,
            )
        }
        for first in range(0, 1500, 300)
    ]
    alone, pairs = {1, 2, 3, 4}, ({5, 6}, {7, 8})
    for places in chosen[0]:
        assert len(places) == 3
        assert all(pair <= {*places} or not pair & {*places} for pair in pairs)
    assert {p for places in chosen[0] for p in places} == alone | {5, 6, 7, 8}
    assert chosen[1] == {*itertools.combinations(range(1, 9), 3)}
    assert chosen[2] == {*itertools.combinations(range(1, 4), 2)}
    assert chosen[3] == {(1, 2), (3,)}
    assert chosen[4] == {()}
    shown = windows.predicted(found)
    assert shown == "1.9 predictions a row, 300 of 1,500 rows have none"


# Next sentence


SENTENCES = np.array([0, 3, 5, 9, 10, 20, 22, 24])
DOCUMENTS = np.array([0, 4, 5, 7])


def cut(targets, random_next_rate, seed):
    starts = draws.starts_of(draws.CUTS, seed, rows=np.arange(len(targets)))
    pairs = cut_into_pairs(
        SENTENCES, DOCUMENTS, np.array(targets), random_next_rate, starts
    )
    return sorted(zip(*(array.tolist() for array in pairs), strict=True))


def test_a_pair_is_a_chunk_that_reaches_its_length_split_at_a_sentence():
    """Without random B, but for chunks of one sentence (their end is their split)."""
    for seed in range(20):
        pairs = cut([5, 5, 3], 0.0, seed)
        assert pairs == [(0, 1, 2), (2, 3, 4), (4, 5, 5), (5, 6, 7)]
        pairs = cut([3, 50, 1], 0.0, seed)
        assert pairs[:3] == [(0, 1, 1), (1, 2, 3), (3, 4, 4)]
        assert pairs[3:] == [(4, 5, 5), (5, 6, 6), (6, 7, 7)]
    whole = {tuple(cut([50, 50, 50], 0.0, seed)[:1]) for seed in range(50)}
    assert whole == {((0, split, 4),) for split in (1, 2, 3)}


def test_what_a_random_next_sentence_displaces_comes_in_the_next_pair():
    for seed in range(50):
        pairs = cut([50, 50, 50], 1.0, seed)
        assert [first for first, _, _ in pairs[1:]] == [end for *_, end in pairs[:-1]]
        assert all(split == end for _, split, end in pairs)
        assert pairs[-1][2] == 7 and (4, 5, 5) in pairs
    splits = [cut([50, 50, 50], 1.0, seed)[0][1] for seed in range(3000)]
    counts = np.bincount(splits, minlength=4)
    assert counts[0] == counts[4:].sum() == 0
    assert np.abs(counts[1:4] - 1000).max() < 4.5 * np.sqrt(1000)


def test_truncation_keeps_as_much_as_bert_does():
    rng = np.random.default_rng(0)
    sizes, limits = rng.integers(1, 40, (500, 2)), rng.integers(5, 60, 500)
    for (size_a, size_b), limit in zip(sizes, limits, strict=True):
        lost = truncation(np.array([size_a]), np.array([size_b]), int(limit))
        length_a, length_b = size_a, size_b
        while length_a + length_b > limit:  # create_pretraining_data.py
            if length_a > length_b:
                length_a -= 1
            else:
                length_b -= 1
        assert (size_a - lost[0], size_b - lost[1]) == (length_a, length_b)


def test_what_is_too_long_loses_as_much_at_the_front_as_at_the_back(
    shards_of, tokenizer, pair_framing
):
    """Both sides are one sentence of 26 letters; 5 of each are lost."""
    letters = PIECES[A : A + 26]
    stream = shards_of([" ".join(letters), " ".join(letters)], pair_framing)
    examples = pair_examples(stream, tokenizer, 42 + 3)
    batch = rows(examples, [0] * 1000)
    fronts = []
    for number in range(1000):
        row = row_of(batch, number)
        for side in (0, 1):
            text = original(row)[row["token_types"] == side]
            text = text[~np.isin(text, list(SPECIAL))]
            np.testing.assert_array_equal(text, np.arange(text[0], text[0] + 21))
            fronts.append(text[0] - A)
    counts = np.bincount(fronts, minlength=6)
    expected = 2000 * np.array([1, 5, 10, 10, 5, 1]) / 32
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()


def test_all_of_a_long_sentence_is_shown(shards_of, tokenizer, pair_framing):
    """2,000 letters without a full stop; five of them tell where they stand."""
    rng = np.random.default_rng(0)
    ids = rng.integers(A, A + 26, 2000)
    text = " ".join(PIECES[token] for token in ids)
    stream = shards_of([text, "a b c\nd e f"], pair_framing)
    places = {tuple(ids[i : i + 5].tolist()): i for i in range(len(ids))}
    batches = windows.training_batches(
        pair_examples(stream, tokenizer, 128), batch_size=500, seed=0
    )
    batch, seen = batches[0], np.zeros(len(ids), bool)
    for number in range(500):
        row = row_of(batch, number)
        clean = original(row)
        for side in (0, 1):
            shown = clean[(row["token_types"] == side) & ~np.isin(clean, [*SPECIAL])]
            if tuple(shown[:5].tolist()) in places:
                start = places[tuple(shown[:5].tolist())]
                seen[start : start + len(shown)] = True
    assert seen.all()


def test_pairs(shards_of, tokenizer, pair_framing):
    stream = shards_of(["a b\nc d", "e\nf"], pair_framing)
    examples = pair_examples(
        stream, tokenizer, 10, max_predictions=2, short_seq_prob=0.0
    )
    nexts = {A: ([A, B], [C, D]), E: ([E], [F])}
    randoms = {
        (A, B): [[E, F], [F]],
        (C, D): [[E, F], [F]],
        (E,): [[A, B, C, D], [C, D]],
        (F,): [[A, B, C, D], [C, D]],
    }
    possible = {(0, (CLS, *a, SEP, *b, SEP)) for a, b in nexts.values()} | {
        (1, (CLS, *a, SEP, *b, SEP)) for a, found in randoms.items() for b in found
    }
    batches = windows.training_batches(examples, batch_size=300, seed=0)
    batch, seen = batches[0], set()
    for number in range(300):
        example = row_of(batch, number)
        label, tokens = int(example["next_sentence"]), original(example)
        size = np.count_nonzero(tokens != PAD)
        seen.add((label, tuple(tokens[:size].tolist())))
        assert example["segment_ids"].tolist() == [1] * size + [0] * (10 - size)
        assert example["positions"].tolist()[:size] == list(range(size))
        first = tokens.tolist().index(SEP) + 1
        types = [0] * first + [1] * (size - first) + [0] * (10 - size)
        assert example["token_types"].tolist() == types
        assert example["next_sentence_weights"] == 1
    assert seen == possible


def share_of_single_sentences(examples, epoch):
    """Of the chunks of an epoch, whatever became of them."""
    first, sentences = examples.pairs(0, epoch).first, examples.shards.sentences
    document = np.searchsorted(examples.documents, first, side="right") - 1
    targets = examples.targets(0, np.full_like(first, epoch), document)
    is_last = first + 1 == examples.documents[document + 1]
    return np.mean(is_last | (sentences[first + 1] - sentences[first] >= targets))


@pytest.mark.parametrize("random_next_rate", [0.5, 0.0, 1.0])
def test_share_and_source_of_random_next_sentences(
    shards_of, tokenizer, pair_framing, random_next_rate
):
    # Each document has a letter of its own, so a row shows where its halves come from.
    rng = np.random.default_rng(0)
    documents = [
        "\n".join(f"{letter} " * int(n) for n in rng.integers(1, 9, sentences))
        for letter, sentences in zip(
            "abcdefghijklmno", itertools.cycle([1, 4, 9, 60]), strict=False
        )
    ]
    stream = shards_of(documents, pair_framing)
    examples = pair_examples(
        stream,
        tokenizer,
        32,
        random_next_rate=random_next_rate,
    )
    batches = windows.training_batches(examples, batch_size=len(examples) * 15, seed=0)
    batch = batches[0]
    labels = batch["next_sentence"]
    # Chunks of one sentence are always random, on top of the rate.
    single = np.mean(
        [share_of_single_sentences(examples, epoch) for epoch in range(15)]
    )
    assert 0.05 < single < 0.7
    expected = random_next_rate + (1 - random_next_rate) * single
    bound = 4.5 * np.sqrt(0.25 / len(labels))
    assert abs(labels.mean() - expected) < bound
    for number in range(len(labels)):
        row = row_of(batch, number)
        tokens, types = original(row), row["token_types"]
        text = ~np.isin(tokens, list(SPECIAL))
        first, second = (set(tokens[text & (types == t)].tolist()) for t in (0, 1))
        assert len(first) == len(second) == 1
        assert (first == second) == (labels[number] == 0)


def test_short_sequences_are_whole_documents_anew_in_each_epoch(
    shards_of, tokenizer, pair_framing
):
    stream = shards_of(["a\n" * 100 + "b", "a\n" * 99 + "c"], pair_framing)
    for short_seq_prob, shortest in ((0.0, 61), (1.0, 2)):
        examples = pair_examples(
            stream,
            tokenizer,
            64,
            short_seq_prob=short_seq_prob,
            random_next_rate=0.0,
        )
        lengths = set()
        for epoch in range(100):
            targets = examples.targets(0, np.full(2, epoch), np.arange(2))
            assert ((targets >= shortest) & (targets <= 61)).all()
            first, _, end = examples.pairs(0, epoch)
            for document, target in enumerate(targets.tolist()):
                place = np.flatnonzero(first == examples.documents[document])
                assert end[place] - first[place] == target
                lengths.add(target)
        assert len(lengths) == 1 if short_seq_prob == 0 else len(lengths) > 50
    examples = pair_examples(stream, tokenizer, 64, short_seq_prob=0.3)
    targets = examples.targets(0, np.arange(20_000), np.zeros(20_000, int))
    share = np.mean(targets < 61)
    assert abs(share - 0.3 * 59 / 60) < 4.5 * np.sqrt(0.21 / 20_000)


def released_pairs(sizes, max_tokens, rng):
    """(first, split, end) of the pairs of a document; end = split where B is random.

    create_instances_from_document of BERT's create_pretraining_data.py, of which only
    the numbers of sentences and tokens are left.
    """
    target = max_tokens
    if rng.random() < 0.1:
        target = int(rng.integers(2, max_tokens, endpoint=True))
    chunk, length, place = [], 0, 0
    while place < len(sizes):
        chunk.append(place)
        length += sizes[place]
        if place == len(sizes) - 1 or length >= target:
            a_end = 1
            if len(chunk) >= 2:
                a_end = int(rng.integers(1, len(chunk) - 1, endpoint=True))
            is_random = len(chunk) == 1 or rng.random() < 0.5
            split = chunk[0] + a_end
            yield chunk[0], split, split if is_random else place + 1
            if is_random:
                place -= len(chunk) - a_end
            chunk, length = [], 0
        place += 1


@pytest.fixture(scope="module")
def sentence_sizes():
    """Tokens of the sentences of 150 documents."""
    rng = np.random.default_rng(0)
    return [rng.integers(10, 50, rng.integers(2, 120)).tolist() for _ in range(150)]


@pytest.fixture
def many_pairs(shards_of, tokenizer, pair_framing, sentence_sizes):
    documents = ["\n".join("a " * n for n in sizes) for sizes in sentence_sizes]
    return pair_examples(shards_of(documents, pair_framing), tokenizer, 128)


@pytest.fixture
def passes(many_pairs, sentence_sizes):
    """40 cuts of ours and of the release: first, split and end of each pair."""
    rng, documents = np.random.default_rng(1), many_pairs.documents.tolist()

    def released():
        for start, sizes in zip(documents, sentence_sizes, strict=False):
            for pair in released_pairs(sizes, 125, rng):
                yield [start + place for place in pair]

    return {
        "ours": [many_pairs.pairs(0, epoch) for epoch in range(40)],
        "released": [np.array([*released()]).T for _ in range(40)],
    }


def test_pairs_are_distributed_as_the_release_has_them(many_pairs, passes):
    """Means over the cuts of what a cut has, by the spread between the cuts."""
    sentences = many_pairs.shards.sentences

    def measures(first, split, end):
        a, both = sentences[split] - sentences[first], sentences[end] - sentences[first]
        follows = end > split
        both = both[follows]
        yield from (len(first), follows.mean(), np.mean(split - first))
        yield from (a.mean(), a.std(), both.mean(), both.std())

    found = {
        name: np.array([[*measures(*cut)] for cut in cuts])
        for name, cuts in passes.items()
    }
    difference = found["ours"].mean(axis=0) - found["released"].mean(axis=0)
    spread = found["ours"].var(axis=0) + found["released"].var(axis=0)
    assert (np.abs(difference) < 3.5 * np.sqrt(spread / 40)).all()


def test_sentences_are_shown_as_evenly_as_by_the_release(many_pairs, passes):
    """Over 20 epochs: of ours what is visited, of the release all."""
    sentences, documents = len(many_pairs.shards.sentences) - 1, many_pairs.documents
    indices = np.arange(len(many_pairs))
    ours = [
        many_pairs.visited(indices, np.full_like(indices, epoch), 0)
        for epoch in range(20)
    ]
    neighbours = {}
    for name, cuts in {"ours": ours, "released": passes["released"][:20]}.items():
        in_a, shown = np.zeros((2, sentences), int)
        followed = np.zeros(sentences, bool)  # one begins B, after the end of A
        for first, split, end in cuts:
            np.add.at(in_a, windows.ranges(first, split - first), 1)
            np.add.at(shown, windows.ranges(first, end - first), 1)
            followed[split[end > split]] = True
        assert np.mean(in_a == 0) < 0.005
        inside = np.setdiff1d(np.arange(sentences), documents)
        neighbours[name] = followed[inside].mean()
        size = np.diff(documents)
        place = np.arange(sentences) - np.repeat(documents[:-1], size)
        tenth = 10 * place // np.repeat(size, size)
        by_place = np.array([shown[tenth == number].mean() for number in range(10)])
        assert (np.abs(by_place / by_place.mean() - 1) < 0.1).all()
    assert min(neighbours.values()) > 0.93
    assert abs(neighbours["ours"] - neighbours["released"]) < 0.01


# Order, hosts, evaluation


@pytest.fixture
def all_examples(shards_of, tokenizer, masked_framing, pair_framing):
    documents = ["\n".join(random_documents(8, 12, seed)) for seed in range(12)]
    return {
        "causal": CausalLmExamples(
            shards_of(documents, shards.Framing(None, SEP, False)), 32
        ),
        "masked": masked_examples(
            shards_of(documents, masked_framing), tokenizer, 32, **BERT
        ),
        "diffusion": PRETRAININGS["masked_diffusion"].examples(
            ConfigDict(), tokenizer, 32
        )(shards_of(documents, masked_framing)),
        "pairs": pair_examples(
            shards_of(documents, pair_framing),
            tokenizer,
            32,
            whole_word=True,
        ),
    }


@pytest.mark.parametrize("objective", ["causal", "masked", "diffusion", "pairs"])
def test_a_batch_is_a_function_of_seed_and_step(all_examples, objective):
    examples = all_examples[objective]
    batches = windows.training_batches(examples, batch_size=4, seed=7)
    forward = [batches[step] for step in range(12)]
    again = windows.training_batches(examples, batch_size=4, seed=7)
    for step in (11, 3, 0, 7, 3):
        assert_same(again[step], forward[step])
    assert_same(batches[10**9], again[10**9])
    other = windows.training_batches(examples, batch_size=4, seed=8)
    assert any((other[s]["tokens"] != forward[s]["tokens"]).any() for s in range(3))


def test_epochs_are_new_orders_with_fresh_masks(all_examples):
    examples = all_examples["masked"]
    count = len(examples)
    batches = windows.training_batches(examples, batch_size=count, seed=0)
    epochs = [batches[epoch] for epoch in range(3)]
    orders = [
        [original(row_of(epoch, number)).tobytes() for number in range(count)]
        for epoch in epochs
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert len(set(orders[0])) == count
    assert orders[0] != orders[1] != orders[2] != orders[0]
    masks = [
        {
            row: tuple(epoch["predict_positions"][number])
            for number, row in enumerate(order)
        }
        for epoch, order in zip(epochs, orders, strict=True)
    ]
    same = np.mean([masks[0][row] == masks[1][row] for row in orders[0]])
    assert same < 0.2  # five of thirty positions agree by chance once in 140,000


@pytest.mark.parametrize("objective", ["causal", "masked", "diffusion", "pairs"])
@pytest.mark.parametrize("host_count", [1, 2, 4])
def test_hosts_share_the_global_batch(all_examples, objective, host_count):
    examples = all_examples[objective]
    whole = windows.training_batches(examples, batch_size=8, seed=1)
    held_out = windows.evaluation_batches(examples, batch_size=8)
    parts = [
        windows.training_batches(
            examples, batch_size=8, seed=1, host_index=host, host_count=host_count
        )
        for host in range(host_count)
    ]
    evaluation_parts = [
        windows.evaluation_batches(
            examples, batch_size=8, host_index=host, host_count=host_count
        )
        for host in range(host_count)
    ]
    for step in (0, 5, 1000):
        assert_same(joined([part[step] for part in parts]), whole[step])
    for step in range(len(held_out)):
        assert_same(joined([part[step] for part in evaluation_parts]), held_out[step])


def test_lanes_go_through_the_text_side_by_side(all_examples):
    """Each row in order, every example of an epoch once, but for a few left over, which
    are others in each epoch; four hosts see what one sees."""
    examples, rows = all_examples["causal"], 8
    count = len(examples)
    length, left = divmod(count, rows)
    assert left
    batches = windows.training_batches(examples, batch_size=rows, seed=3, in_lanes=True)
    starts = set()
    for epoch in range(3):
        places = [
            windows.lane_places(step, np.arange(rows), rows, count, 3)
            for step in range(epoch * length, (epoch + 1) * length)
        ]
        indices = np.stack([place[1] for place in places])
        goes_on = np.stack([place[2] for place in places])
        assert {place[0] for place in places} == {epoch}
        assert len({*indices.reshape(-1).tolist()}) == length * rows
        assert not goes_on[0].any()
        follows = indices[1:] == indices[:-1] + 1
        np.testing.assert_array_equal(goes_on[1:], follows)
        assert np.count_nonzero(~follows) <= 1  # where the text ends
        starts.add(int(indices[0, 0]))
    assert len(starts) == 3
    parts = [
        windows.training_batches(
            examples,
            batch_size=rows,
            seed=3,
            in_lanes=True,
            host_index=host,
            host_count=4,
        )
        for host in range(4)
    ]
    for step in (0, 1, length, 1000):
        assert_same(joined([part[step] for part in parts]), batches[step])


def joined(batches):
    return {
        name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]
    }


@pytest.mark.parametrize("objective", ["causal", "masked", "diffusion", "pairs"])
def test_evaluation_sees_every_example_once(all_examples, objective):
    examples = all_examples[objective]
    count = len(examples)
    reference = None
    for batch_size in (1, 3, 8, 50):
        batches = windows.evaluation_batches(examples, batch_size=batch_size)
        assert len(batches) == -(-count // batch_size)
        rows = joined([batches[step] for step in range(len(batches))])
        assert {len(array) for array in rows.values()} == {len(batches) * batch_size}
        for array in rows.values():
            assert not array[count:].any()  # padding: segment 0, weight 0
        real = {name: array[:count] for name, array in rows.items()}
        reference = reference or real
        assert_same(real, reference)
    assert reference["weights"].any(axis=1).mean() > 0.9
    if objective == "pairs":
        assert (reference["next_sentence_weights"] == 1).all()


@pytest.mark.parametrize("objective", ["causal", "masked", "diffusion", "pairs"])
def test_a_part_of_the_evaluation_is_made_as_in_the_whole(all_examples, objective):
    examples = all_examples[objective]
    count = len(examples)
    (whole,) = windows.evaluation_batches(examples, batch_size=count)
    for most in (1, 5, count // 2, count, count + 3):
        (part,) = windows.evaluation_batches(examples, batch_size=count, most=most)
        found = min(most, count)
        places = np.arange(found) * count // found
        for name, array in part.items():
            np.testing.assert_array_equal(array[:found], whole[name][places])
            assert not array[found:].any()


# What the user sees


def test_describe(shards_of, tokenizer, masked_framing, pair_framing, all_examples):
    causal = CausalLmExamples(
        shards_of(["a b c", "d"], shards.Framing(None, SEP, False)), 8
    )
    batch = windows.evaluation_batches(causal, batch_size=1)[0]
    assert windows.describe(batch, tokenizer, 1).splitlines() == [
        "row 0: 6 tokens, 2 padding, 4 predicted",
        "  sequence 1: a b c [SEP] |",
        "  sequence 2: d [SEP] |",
        "padding: 25.0% of the batch's 8 tokens",
    ]
    masked = masked_examples(
        shards_of(["a", "b"], masked_framing),
        tokenizer,
        8,
        mask_rate=0.3,
        mask_token_rate=1.0,
        random_token_rate=0.0,
    )
    batch = windows.evaluation_batches(masked, batch_size=2)[0]
    assert windows.describe(batch, tokenizer, 2).splitlines() == [
        "row 0: 6 tokens, 2 padding, 2 predicted",
        "  sequence 1: [CLS] {[MASK] -> a} [SEP]",
        "  sequence 2: [CLS] {[MASK] -> b} [SEP]",
        "row 1: 0 tokens, 8 padding, 0 predicted",
        "padding: 62.5% of the batch's 16 tokens",
    ]
    batches = windows.training_batches(all_examples["pairs"], batch_size=4, seed=0)
    text = windows.describe(batches[0], tokenizer, 4)
    labels = [int(label) for label in batches[0]["next_sentence"]]
    assert re.findall(r"  next sentence: (\d)\n", text) == [*map(str, labels)]
    assert " -> " in text
    assert windows.glimpse("row 0\n" + "x" * 161 + "\ny\nz").splitlines() == [
        "row 0",
        "x" * 156 + " ...",
        "y",
    ]


def test_one_document_has_no_random_next_sentence(shards_of, tokenizer, pair_framing):
    stream = shards_of(["a b\nc d"], pair_framing)
    with pytest.raises(UserError, match=r"two documents.*objective.name='masked_lm'"):
        pair_examples(stream, tokenizer, 16)


@pytest.mark.parametrize("name", PRETRAININGS)
def test_too_little_text(shards_of, tokenizer, name):
    stream = shards_of(["a"], shards.Framing(None, None, name == "next_sentence"))
    with pytest.raises(UserError, match=r"1 token.*nothing to predict|two documents"):
        PRETRAININGS[name].examples(ConfigDict(PAIRS), tokenizer, 16)(stream)


def test_framing(tokenizer, tmp_path):
    causal = PRETRAININGS["causal_lm"]
    assert causal.framing(tokenizer) == shards.Framing(None, None, False)
    masked = PRETRAININGS["masked_lm"].framing(tokenizer)
    assert masked == shards.Framing(CLS, SEP, False)
    pairs = PRETRAININGS["next_sentence"].framing(tokenizer)
    assert pairs == shards.Framing(None, None, True)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n<|endoftext|>\n")
    with_end_of_text = tokenizers.load(str(tmp_path / "vocab.txt"))
    assert causal.framing(with_end_of_text) == shards.Framing(3, 3, False)


def test_special_tokens_that_a_way_needs(tokenizer, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    without_mask = tokenizers.load(str(tmp_path / "vocab.txt"))
    with pytest.raises(UserError, match=r"'causal_lm' needs .*; 'end_of_text=' for n"):
        check_tokenizer("causal_lm", without_mask)
    path, roles = str(tmp_path / "vocab.txt"), tokenizers.parse_roles("end_of_text=")
    without_end = tokenizers.load(path, roles)
    check_tokenizer("causal_lm", without_end)
    assert PRETRAININGS["causal_lm"].framing(without_end).document_end is None
    check_tokenizer("causal_lm", tokenizers.load(path, {"end_of_text": "a"}))
    no_mask = tokenizers.load(path, tokenizers.parse_roles("mask="))
    with pytest.raises(
        UserError, match=r"'masked_lm' needs .* no mask .*mask=PIECE'\)"
    ):
        check_tokenizer("masked_lm", no_mask)
    for name in ("masked_lm", "next_sentence"):
        check_tokenizer(name, tokenizer)
        message = rf"'{name}' needs.* has no mask \(it has cls, pad, sep, unk\)"
        with pytest.raises(UserError, match=message):
            check_tokenizer(name, without_mask)


# Settings, and what must fit what


def config_of(name, sequence_length=128, **settings):
    own = PAIRS | {"causal_share": 0.5, "sampled_words": 64, "carry_state": False}
    objective = (own if PRETRAININGS[name].settings else {}) | settings
    return ConfigDict(
        {
            "objective": objective | {"name": name},
            "data": {"sequence_length": sequence_length, "batch_size": 8},
            "model": {"vocab_size": 100},
        }
    )


def objections(name, **settings):
    config = config_of(name, **settings)
    return [said for rule in PRETRAININGS[name].rules if (said := rule(config))]


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        ("mask_rate", [0.15, 1], [0.0, -0.1, 1.5, float("nan")]),
        ("mask_token_rate", [0, 0.8, 1], [-0.1, 1.1]),
        ("random_token_rate", [0, 0.1, 1], [-0.1, 1.1]),
        ("max_predictions", [1, 20], [0, -1]),
        ("short_seq_prob", [0, 0.1, 1], [-0.1, 1.1]),
        ("random_next_rate", [0, 0.5, 1], [-0.1, 1.1]),
    ],
)
def test_ranges_of_settings(setting, good, bad):
    rows = {row.name: row for row in PRETRAININGS["next_sentence"].settings}
    row = rows[f"objective.{setting}"]
    assert all(row.allows(value) for value in good)
    assert not any(row.allows(value) for value in bad)


def test_a_way_has_a_row_for_each_of_its_settings():
    def rows(name):
        return {row.name for row in PRETRAININGS[name].settings}

    assert rows("causal_lm") == set()
    assert rows("masked_lm") == {f"objective.{name}" for name in BERT}
    assert rows("next_sentence") == {f"objective.{name}" for name in PAIRS}
    assert rows("bidirectional_lm") == {
        "objective.sampled_words",
        "objective.carry_state",
    }


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("causal_lm", {"sequence_length": 7}, r"data\.sequence_length=7 is too short"),
        ("masked_lm", {"sequence_length": 7}, r"data\.sequence_length=7 is too short"),
        (
            "masked_lm",
            {"random_token_rate": 0.3},
            r"mask_token_rate=0\.8 and objective\.random_token_rate=0\.3 add up to",
        ),
        (
            "next_sentence",
            {"sequence_length": 512},
            r"max_predictions=20 leaves 3\.9 % of the 512 .*mask_rate=0\.15.*set "
            r"objective\.max_predictions=77$",
        ),
        (
            "masked_lm",
            {"sequence_length": 32, "mask_rate": 0.4, "max_predictions": 5},
            r"max_predictions=5 leaves 15\.6 %.*set objective\.max_predictions=13$",
        ),
        (
            "bidirectional_lm",
            {"sampled_words": 100},
            r"sampled_words=100 is not fewer than model\.vocab_size=100: .* or 0 for",
        ),
        ("mixed", {"causal_share": 0}, r"=0 leaves rows .*objective\.name='masked_lm'"),
        ("mixed", {"causal_share": 1}, r"=1 leaves rows .*objective\.name='causal_lm'"),
        (
            "mixed",
            {"causal_share": 0.3},
            r"2\.4 rows: .*objective\.causal_share=0\.25,",
        ),
        ("mixed", {"causal_share": 1e-9}, r"8e-09 rows: .*causal_share=0\.125, or "),
    ],
)
def test_settings_that_do_not_fit_each_other(name, settings, message):
    (said,) = objections(name, **settings)
    assert re.search(message, said)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("data.phases", r"carry_state=True goes on row by row.*phases='other' must be"),
        ("run.parallel", r"carry_state=True keeps .*run\.parallel='other'.* use 'jit'"),
    ],
)
def test_rows_that_go_on_fit_one_shape_and_jit(changed, message):
    config = config_of("bidirectional_lm", carry_state=True)
    config.data.phases, config.run = "", ConfigDict({"parallel": "jit"})
    fits = bidirectional_lm.carrying_fits
    assert fits(config) is None
    config.update_from_flattened_dict({changed: "other"})
    assert re.search(message, fits(config))
    config.objective.carry_state = False
    assert fits(config) is None


@pytest.mark.parametrize("name", PRETRAININGS)
def test_settings_that_fit_each_other(name):
    """20 at 128 (19.2 wanted) and 26 at 64 (25.6 wanted) are right."""
    assert objections(name) == []
    assert objections(name, sequence_length=8) == []
    if any(row.name.endswith("mask_rate") for row in PRETRAININGS[name].settings):
        fitting = {"sequence_length": 64, "mask_rate": 0.4}
        assert objections(name, **fitting, max_predictions=26) == []
        assert objections(name, **fitting, max_predictions=25) != []
        assert objections(name, mask_token_rate=0.9) == []


@pytest.mark.parametrize("name", PRETRAININGS)
@pytest.mark.parametrize("mask_rate", [0.01, 0.15, 0.4, 1.0])
def test_tiny_settings_fit_their_length(name, mask_rate):
    settings = {"mask_rate": mask_rate} if PRETRAININGS[name].settings else {}
    config = config_of(name, 32, **settings)
    config.objective.update(PRETRAININGS[name].tiny(config.objective, 32))
    assert [rule(config) for rule in PRETRAININGS[name].rules if rule(config)] == []
    assert all(
        row.allows(config.objective[row.name.removeprefix("objective.")])
        for row in PRETRAININGS[name].settings
    )


BERT_MODEL = {"family": "bert", "pooler": True}
BERT_MODEL |= {"masked_lm_head": True, "next_sentence_head": True}
GPT_MODEL = {"family": "gpt"}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "next_sentence",
            BERT_MODEL | {"pooler": False, "next_sentence_head": False},
            "predicts next_sentence.*set model.next_sentence_head=True and "
            "model.pooler=True, or objective.name='masked_lm', or ",
        ),
        (
            "next_sentence",
            BERT_MODEL | {"pooler": False},
            "set model.pooler=True, or objective.name='masked_lm', or ",
        ),
        (
            "masked_lm",
            BERT_MODEL | {"masked_lm_head": False},
            "predicts masked_lm.*set model.masked_lm_head=True$",
        ),
        (
            "causal_lm",
            BERT_MODEL,
            "sees the left side alone.*model.family='bert' does not: set "
            "model.family='gpt', or model.family='foreword', or "
            "objective.name='masked_lm', or objective.name='masked_diffusion', or "
            "objective.name='next_sentence'$",
        ),
        (
            "masked_lm",
            GPT_MODEL,
            "sees both sides.*model.family='gpt' does not: set model.family='bert', or "
            "model.family='foreword', or objective.name='causal_lm'$",
        ),
        ("next_sentence", GPT_MODEL, "sees both sides.*set model.family='bert'"),
        (
            "mixed",
            GPT_MODEL,
            "sees the left side alone or, with the same weights, both sides of a "
            "position.*set model.family='foreword', or objective.name='causal_lm'$",
        ),
    ],
)
def test_models_that_cannot_be_trained_in_a_way(name, fields, message):
    with pytest.raises(UserError, match=f"^objective.name='{name}' needs .*{message}"):
        check_model(name, fields)


def test_what_a_position_sees_counts_as_well(monkeypatch):
    """A family that sees both sides and yet has an output for the next token."""
    seeing = dataclasses.replace(models.FAMILIES["bert"], outputs={"causal_lm": {}})
    monkeypatch.setitem(models.FAMILIES, "seeing", seeing)
    with pytest.raises(UserError, match=r"sees the left side alone.*set .*'gpt', or"):
        check_model("causal_lm", {"family": "seeing"})
    check_model("causal_lm", {"family": "foreword", "sees": "left"})
    check_model("masked_lm", {"family": "foreword", "sees": "both"})
    for sides in ("left", "both"):
        check_model("mixed", {"family": "foreword", "sees": sides})
    with pytest.raises(UserError, match=r"sees the left side .*set model.sees=left"):
        check_model("causal_lm", {"family": "foreword", "sees": "both"})


def test_models_that_can_be_trained_in_a_way():
    check_model("causal_lm", GPT_MODEL)
    check_model("masked_lm", BERT_MODEL | {"next_sentence_head": False})
    check_model("masked_lm", BERT_MODEL)
    check_model("next_sentence", BERT_MODEL)


def test_init_from_what_is_no_run(tmp_path):
    config = config_of("causal_lm")
    config.init_from = str(tmp_path)
    config.data.tokenizer = {"path": ""}
    with pytest.raises(UserError, match=r"init_from='.*' is not a run folder"):
        load_or_train_tokenizer(config, corpora.Corpus("python_docs", "text", "file"))


def test_unknown_ways_are_refused_with_those_there_are():
    message = "'mased_lm' is no way.* masked_lm, masked_diffusion, .*; .*masked_lm?"
    with pytest.raises(UserError, match=message):
        way_of("mased_lm")
    with pytest.raises(UserError, match=r"'' is no way to.*, bidirectional_lm$"):
        way_of("")


# Losses, lines, evaluations


SMALL = {"vocab_size": 35, "max_positions": 16, "num_layers": 1, "num_heads": 2}
SMALL |= {"head_dim": 4, "hidden_size": 8, "ffn_size": 16, "activation": "relu"}
SMALL |= {"norm_epsilon": 1e-5, "init_std": 0.5, "precision": "float32"}
SMALL |= {"embedding_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0}
OWN = {
    "bert": BERT_MODEL | {"num_token_types": 2, "truncated_init": True},
    "gpt": GPT_MODEL
    | {"pre_norm": True, "table_dropout": False, "residual_scaling": False}
    | {"position_init_std": 0.02},
}


@pytest.mark.parametrize("logit_chunks", [1, 3])
@pytest.mark.parametrize(
    "name", sorted({*PRETRAININGS} - {"bidirectional_lm", "mixed"})
)
def test_loss_terms(shards_of, tokenizer, name, logit_chunks):
    """Against -log p of the right word and the right label, term by term; that of the
    bidirectional ones, who read no tokens, is in test_elmo.py."""
    way = PRETRAININGS[name]
    family = "gpt" if way.sees == ("left",) else "bert"
    model = models.build(SMALL | OWN[family])
    documents = ["\n".join(random_documents(8, 5, seed)) for seed in range(3)]
    stream = shards_of(documents, way.framing(tokenizer))
    objective = ConfigDict(PAIRS | {"max_predictions": 5})
    examples = way.examples(objective, tokenizer, 16)(stream)
    batch = windows.evaluation_batches(examples, batch_size=8)[0]
    batch = jax.tree.map(jnp.asarray, batch)
    params = model.init(jax.random.key(0), batch)
    terms = way.loss_terms(objective, model, logit_chunks)(params, batch, None)
    assert tuple(terms) == way.outputs
    for output, (loss, weight, _) in terms.items():
        targets, weights = batch["targets"], batch["weights"]
        if output == "next_sentence":
            targets, weights = batch["next_sentence"], batch["next_sentence_weights"]
            assert set(targets.tolist()) == {0, 1}
        states, table, bias = model.apply(params, batch)[output]
        scores = np.asarray(states) @ np.asarray(table).T
        scores = scores if bias is None else scores + np.asarray(bias)
        right = np.take_along_axis(
            np.asarray(jax.nn.log_softmax(scores)), targets[..., None], axis=-1
        )
        np.testing.assert_allclose(loss, -(right[..., 0] * weights).sum(), rtol=1e-5)
        assert 0 < float(weight) == pytest.approx(float(weights.sum()))


def test_evaluations(shards_of):
    """Two documents of 5 tokens with their ends: 3 of them are predicted."""
    heldout = shards_of(["a b", "c"], shards.Framing(None, SEP, False))
    assert (heldout.num_tokens, heldout.text_bytes) == (5, 4)
    means = {"causal_lm_loss": np.log(8), "masked_lm_loss": np.log(8)}
    assert PRETRAININGS["causal_lm"].evaluation(means, heldout) == {
        "perplexity": pytest.approx(8),
        "bits_per_byte": pytest.approx(3 * 3 / 4),  # 3 tokens of 3 bits, 4 bytes
    }
    for way in ("masked_lm", "next_sentence"):
        found = PRETRAININGS[way].evaluation(means, heldout)
        assert found == {"perplexity": pytest.approx(8)}
        found = PRETRAININGS[way].evaluation({"masked_lm_loss": 1e4}, heldout)
        assert found == {"perplexity": math.inf}


def test_batches_that_do_not_divide_over_hosts(all_examples):
    with pytest.raises(UserError, match=r"data\.batch_size=6 .* 4 host"):
        windows.training_batches(
            all_examples["causal"], batch_size=6, seed=0, host_count=4
        )
    with pytest.raises(UserError, match=r"data\.batch_size=0 .*: choose 1, or a mul"):
        windows.training_batches(all_examples["causal"], batch_size=0, seed=0)
