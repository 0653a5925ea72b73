"""Lines to beat: models that count, and the measure of hidden words."""

import collections
import importlib
import itertools
import json
import math

import numpy as np
import pytest

import train
from data import corpora, shards, tokenizer_training, windows
from data.masking import Masking
from pretraining import PRETRAININGS, counts, masked_words
from pretraining.counts import Neighbours, Ngrams, Stream, rows_as_stream, stream_of
from pretraining.next_words import target_probabilities
from pretraining.record import HeldOut

SIZE = 12


@pytest.fixture(scope="module")
def text():
    """600 words in 20 documents, where each word mostly decides the next."""
    draw = np.random.default_rng(0)
    words = [0]
    for _ in range(599):
        follows = (words[-1] * 5 + 3) % (SIZE - 2)
        words.append(follows if draw.random() < 0.6 else int(draw.integers(SIZE - 2)))
    documents = np.sort(draw.choice(np.arange(1, 600), 19, replace=False))
    return stream_of(np.array(words), np.array([0, *documents, 600]))


def plain_kneser_ney(text, order):
    """The formulas over dictionaries, one probability at a time."""
    documents = []
    for word, before in zip(text.words.tolist(), text.before.tolist(), strict=True):
        if before == 0:
            documents.append([])
        documents[-1].append(word)
    seen = {n: collections.Counter() for n in range(1, order + 1)}
    for document in documents:
        for n, at in itertools.product(seen, range(len(document))):
            if at + 1 >= n:
                seen[n][tuple(document[at + 1 - n : at + 1])] += 1
    for n in range(1, order):  # how many words stand before, or documents begin so
        before = {gram: set() for gram in seen[n]}
        for gram in seen[n + 1]:
            before[gram[1:]].add(gram[0])
        begins = collections.Counter(tuple(document[:n]) for document in documents)
        seen[n] = {gram: len(before[gram]) + begins[gram] for gram in before}

    def discount(n, count):
        of = collections.Counter(seen[n].values())
        n1, n2, n3, n4 = (max(1, of[c]) for c in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        ones, twos, more = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        best, most = {1: (ones, 1), 2: (twos, 2)}.get(count, (more, 3))
        return min(max(best, 0.1), most)

    def probability(word, context):
        if len(context) == 0:
            shorter, n = 1 / SIZE, 1
        else:
            shorter, n = probability(word, context[1:]), len(context) + 1
        after = {g[-1]: c for g, c in seen[n].items() if g[:-1] == tuple(context)}
        total = sum(after.values())
        if not total:
            return shorter
        left = sum(discount(n, count) for count in after.values()) / total
        own = after[word] - discount(n, after[word]) if word in after else 0
        return own / total + left * shorter

    return probability


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngrams_are_the_formulas(text, order):
    model, plain = Ngrams(text, SIZE, order), plain_kneser_ney(text, order)
    rows = np.random.default_rng(1).integers(SIZE, size=(6, 7))
    rows[0] = text.words[:7]
    segments = np.ones_like(rows)
    segments[1, 3:] = 2
    found = model.probabilities(rows_as_stream(rows, segments)).reshape(rows.shape)
    for row, column in itertools.product(range(6), range(7)):
        first = 3 if row == 1 and column >= 3 else 0
        context = rows[row, max(first, column - order + 1) : column].tolist()
        wanted = plain(rows[row, column], context)
        np.testing.assert_allclose(found[row, column], wanted, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_ngrams_add_up_to_one_and_know_the_text(text, order):
    model = Ngrams(text, SIZE, order)
    context = text.words[20:24]
    rows = np.concatenate(
        [np.tile(context, (SIZE, 1)), np.arange(SIZE)[:, None]], axis=1
    )
    found = model.probabilities(rows_as_stream(rows, np.ones_like(rows)))
    np.testing.assert_allclose(found.reshape(rows.shape)[:, -1].sum(), 1, rtol=1e-12)
    loss = -np.log(model.probabilities(text)).mean()
    assert loss < math.log(SIZE) if order == 1 else loss < 1.7


def test_long_text_is_counted_in_stretches(text, monkeypatch):
    monkeypatch.setattr(counts, "MOST_TOKENS", 200)
    monkeypatch.setattr(counts, "STRETCHES", 4)
    ends = np.array([0, 300, 600])
    some = stream_of(text.words, ends)
    wanted = [[*range(first, first + 50)] for first in (0, 183, 366, 550)]
    np.testing.assert_array_equal(some.words, text.words[np.ravel(wanted)])
    starts = np.flatnonzero(some.before == 0)
    np.testing.assert_array_equal(starts, [0, 50, 100, 150])


def test_neighbours_know_more_than_one_side(text):
    shares = counts.frequencies(np.bincount(text.words, minlength=SIZE))
    shares[SIZE - 1] = 0
    shares /= shares.sum()
    model = Neighbours(text, shares)
    inside = np.flatnonzero((text.before[1:-1] > 0) & (text.before[2:] > 0)) + 1
    left, right, word = (text.words[inside + step] for step in (-1, 1, 0))
    hidden = np.full_like(left, -1)
    losses = []
    for sides in ((hidden, hidden), (left, hidden), (hidden, right), (left, right)):
        found = model.probabilities(*sides)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
        assert not found[:, SIZE - 1].any()
        losses.append(-np.log(found[np.arange(len(word)), word]).mean())
    nothing, by_left, by_right, both = losses
    assert both < min(by_left, by_right) - 0.2
    assert max(by_left, by_right) < nothing - 0.2
    np.testing.assert_allclose(model.probabilities(hidden, hidden)[0], shares)


def test_backwards_reads_documents_from_their_ends():
    found = counts.backwards(Stream(np.arange(5), np.array([0, 1, 2, 0, 1])))
    assert found.words.tolist() == [4, 3, 2, 1, 0]
    assert found.before.tolist() == [0, 1, 0, 1, 2]


# The measure of hidden words.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(tokenizer, way -> held-out split, of the same text)."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    words = [f"w{n}" for n in range(40)]
    path = folder / "a.txt"
    path.write_text(
        "\n\n".join(" ".join(draw.choice(words, 30)) + "." for _ in range(400))
    )
    source = corpora.Corpus(str(path), "text", "blank_line")
    tokenizer = tokenizer_training.train(
        iter(source),
        algorithm="wordpiece",
        vocab_size=80,
        lowercase=True,
        strip_accents=True,
        unicode_form="NFC",
        sample_bytes=10**6,
        special_tokens=PRETRAININGS["masked_lm"].special_tokens,
    )
    splits = {}
    for way in ("masked_lm", "next_sentence"):
        framing = PRETRAININGS[way].framing(tokenizer)
        shards.write_shards(
            source, tokenizer, folder / way, heldout_fraction=0.5, framing=framing
        )
        splits[way] = shards.open_shards(folder / way, "heldout")
    return tokenizer, splits


def hidden_places(tokenizer, split, length):
    """Stream position -> token, of all that is hidden."""
    examples = masked_words.MEASURES["masked"].examples(tokenizer, length)(split)
    found = {}
    for number, batch in enumerate(windows.evaluation_batches(examples, batch_size=1)):
        start = examples.windows.starts(np.array([number]))[0]
        real = batch["weights"][0] > 0
        for position, target in zip(
            batch["predict_positions"][0][real], batch["targets"][0][real], strict=True
        ):
            assert batch["tokens"][0, position] == tokenizer.special_ids["mask"]
            found[int(start + position)] = int(target)
    return found


def test_the_same_words_are_hidden_whatever_the_rows(corpus):
    tokenizer, splits = corpus
    framed = splits["masked_lm"]
    first = hidden_places(tokenizer, framed, 16)
    assert first == hidden_places(tokenizer, framed, 61)
    assert first == hidden_places(tokenizer, splits["next_sentence"], 61)
    special = {*tokenizer.special_ids.values()}
    text = [at for at, token in enumerate(framed.tokens) if token not in special]
    for at, target in first.items():
        assert framed.tokens[at] == target
    share, spread = len(first) / len(text), math.sqrt(0.15 * 0.85 / len(text))
    assert abs(share - 0.15) < 4 * spread


def test_the_line_of_a_mixture_is_that_of_who_knows_frequencies(corpus):
    """Beside the formula with expectations in place of the rows drawn."""
    tokenizer, splits = corpus
    split, objective = (
        splits["masked_lm"],
        importlib.import_module("configs.bert_mini").get_config("tiny").objective,
    )
    objective.update(mask_rate=0.3, max_predictions=20)
    examples = PRETRAININGS["masked_lm"].examples(objective, tokenizer, 61)(split)
    batches = [*windows.evaluation_batches(examples, batch_size=8)]
    times = split.unigram_counts.copy()
    times[[*tokenizer.special_ids.values()]] = 0
    p = times / times.sum()
    masking: Masking = masked_words.make_masking(objective, tokenizer)
    found = np.concatenate(
        [masked_words.frequency_losses(p, masking, batch) for batch in batches]
    )
    u = np.isin(np.arange(len(p)), masking.replacements) / len(masking.replacements)
    kept = 0.1 * p / np.maximum(0.1 * p + 0.1 * u, 1e-30)
    with np.errstate(divide="ignore"):
        entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
        visible = -np.sum(p[p > 0] * np.log(kept + (1 - kept) * p)[p > 0])
        other = -np.sum(u * np.log(1 - kept)) + entropy
    wanted = 0.8 * entropy + 0.1 * visible + 0.1 * other
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - wanted) < 4 * error
    assert wanted < entropy - 5 * error  # it is another line than the entropy


@pytest.mark.parametrize("way", ["masked_lm", "next_sentence"])
def test_masked_lines_are_in_the_units_of_the_evaluation(corpus, way):
    tokenizer, splits = corpus
    config = importlib.import_module("configs.bert_base").get_config("tiny")
    record = PRETRAININGS[way]
    split = splits[way]
    batches = [
        [*windows.evaluation_batches(one(split), batch_size=8)]
        for one in (
            record.examples(config.objective, tokenizer, 32),
            record.measures["masked"].examples(tokenizer, 32),
        )
    ]
    held_out = HeldOut(
        split, batches[0], {"masked": batches[1]}, len(split.unigram_counts)
    )
    lines = record.lines(config.objective, tokenizer, split, held_out)
    loss = {"masked_lm": "loss", "next_sentence": "masked_lm_loss"}[way]
    names = [(line.name, line.metric) for line in lines]
    assert names == [
        ("frequencies", "masked_loss"),
        ("both neighbours", "masked_loss"),
        ("both neighbours", "masked_accuracy"),
        ("frequencies", loss),
    ]
    frequencies, neighbours, accuracy, _ = (line.value for line in lines)
    assert neighbours < frequencies < math.log(tokenizer.vocab_size)
    assert 0 < accuracy < 1


def test_causal_lines_are_of_the_targets():
    rows = np.array([[1, 2, 3, 4], [4, 3, 0, 0]])
    segments = np.array([[1, 1, 2, 2], [1, 1, 0, 0]])
    batch = {
        "tokens": rows,
        "segment_ids": segments,
        "targets": np.array([[2, 0, 4, 5], [3, 0, 0, 0]]),
        "weights": np.array([[1, 0, 1, 1], [1, 0, 0, 0]], np.float32),
    }
    text = Stream(np.array([1, 2, 1, 2, 3, 4, 5]), np.arange(7))
    model = Ngrams(text, 8, 3)
    found = target_probabilities(model, batch).reshape(rows.shape)

    def after(*words):
        row = np.array([words])
        return model.probabilities(rows_as_stream(row, np.ones_like(row)))[-1]

    np.testing.assert_allclose(found[0, 0], after(1, 2))
    np.testing.assert_allclose(found[0, 2], after(3, 4))
    np.testing.assert_allclose(found[0, 3], after(3, 4, 5))
    np.testing.assert_allclose(found[1, 0], after(4, 3))


def test_a_run_keeps_its_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    config = importlib.import_module("configs.gpt_mini").get_config("tiny")
    config.run.mesh.data = 1
    train.train(config, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "lines.json").read_text())
    assert [line["name"] for line in kept] == ["unigram", "bigram", "5-gram"]
    assert {line["metric"] for line in kept} == {"bits_per_byte"}
    unigram, bigram, runs_of_five = (line["value"] for line in kept)
    assert runs_of_five < bigram < unigram
    said = capsys.readouterr().out
    assert f"bits_per_byte {bigram:.3f}: bigram" in said
    assert "the run knows no more than unigram" in said
    monkeypatch.setattr(Ngrams, "__init__", None)  # counted once
    train.train(config, tmp_path / "run")
    assert "the run is done" in capsys.readouterr().out
