"""Which sentence of a pair is likelier, to a run and to counts of its text."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from data import shards
from data.pairs import Pair
from data.spelling import OpenWords, cut_to
from pretraining.counts import Ngrams, Stream, stream_of
from use import measured, scoring
from use.measured import Measured
from use.run import Run
from use.scoring import Counted

ORDER = 5
Paradigms = Mapping[str, Sequence[Pair]]


def score_pairs(
    run: Run, paradigms: Paradigms, way: str, within_word: bool = False
) -> dict[str, Measured]:
    """The share of pairs whose good sentence is likelier, ties one half: by paradigm,
    "accuracy/NAME", and the mean of these, "accuracy".

    Raises:
        UserError: a sentence without a piece, or longer than the model.
    """
    texts = sentences(run, paradigms, way)
    sums = scoring.log_probabilities(run, way, texts, within_word).sums
    return accuracies(paradigms, sums)


def score_by_counts(
    run: Run, paradigms: Paradigms, model: Ngrams
) -> dict[str, Measured]:
    """The same, of a model that counts."""
    pieces = run.tokenizer.encode_batch([text for text, _ in listed(paradigms)])
    if isinstance(run.tokenizer, OpenWords):  # new words are none that were counted
        unknown = run.tokenizer.special_ids["unk"]
        pieces = [cut_to(ids, model.vocab_size, unknown) for ids in pieces]
    sums = text_sums(
        model, [np.array([*run.start, *ids]) for ids in pieces], len(run.start)
    )
    return accuracies(paradigms, sums)


def sentences(run: Run, paradigms: Paradigms, way: str) -> list[Counted]:
    texts, places = zip(*listed(paradigms), strict=True)
    return scoring.whole_texts(run, way, texts, places)


def listed(paradigms: Paradigms) -> list[tuple[str, str]]:
    """Text and place of all sentences, the good one of a pair before the bad one."""
    pairs = [pair for found in paradigms.values() for pair in found]
    return [(text, pair.place) for pair in pairs for text in (pair.good, pair.bad)]


def accuracies(
    paradigms: Paradigms, sums: Float64[np.ndarray, " two_N"]
) -> dict[str, Measured]:
    """Of the log-probabilities of `listed`."""
    good, bad = sums[0::2], sums[1::2]
    right = (good > bad) + 0.5 * (good == bad)
    ends = np.cumsum([len(pairs) for pairs in paradigms.values()])
    parts = [measured.mean(part) for part in np.split(right, ends[:-1])]
    named = zip(paradigms, parts, strict=True)
    by_paradigm = {f"accuracy/{name}": part for name, part in named}
    return {"accuracy": measured.mean_of(parts)} | by_paradigm


def text_sums(
    model: Ngrams, texts: Sequence[np.ndarray], first: int
) -> Float64[np.ndarray, " N"]:
    """The log-probability of each text's tokens from number `first` on."""
    before = [np.arange(len(tokens)) for tokens in texts]
    stream = Stream(np.concatenate(texts).astype(np.int64), np.concatenate(before))
    nats = np.log(model.probabilities(stream)) * (stream.before >= first)
    owners = np.repeat(np.arange(len(texts)), [len(tokens) for tokens in texts])
    return np.bincount(owners, nats, len(texts))


def count_text(run: Run) -> Ngrams | str:
    """The counts of a run's training text by Kneser and Ney, or why there are none."""
    origin = run.folder / "data.json"
    if not origin.exists():
        return f"{run.folder} was not trained here: its text is not known"
    made_of = json.loads(origin.read_text())
    made_of.pop("draws_version", None)  # which an older run has not
    folder = Path(run.config.data.shards or shards.folder_for(made_of))
    if not shards.is_finished(folder) or shards.read_key(folder) != made_of:
        return (
            f"the shards of its text are no longer in {folder}: prepare.py makes them"
        )
    train = shards.open_shards(folder, "train")
    text = stream_of(train.tokens, train.documents)
    return Ngrams(text, len(train.unigram_counts), ORDER)
