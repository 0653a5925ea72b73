"""BERT's two tasks: predict the masked tokens, and whether B follows A.

Source: Devlin et al. 2019, section 3.1; create_pretraining_data.py. A label is 0 where
B follows and 1 where it is random text, as there.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64

from data import draws
from data.draws import Draws
from data.masking import Masking
from data.shards import Framing, Shards
from data.tokenizers import BERT_SPECIAL_TOKENS, Tokenizer
from data.windows import EVALUATION_SEED, Batch, Visits
from errors import UserError
from pretraining import masked_words
from pretraining.language_model import word_loss
from pretraining.record import Objective, Pretraining
from settings import Setting

CUTS_KEPT = 2  # a batch may begin in the epoch before


class Pairs(NamedTuple):
    """A is sentences first .. split-1 of a document, and B split .. end-1, or random
    text where there are none (end = split)."""

    first: Int64[np.ndarray, " C"]
    split: Int64[np.ndarray, " C"]
    end: Int64[np.ndarray, " C"]


class NextSentenceExamples:
    """Pairs `[CLS] A [SEP] B [SEP]`, masked, with next sentence prediction.

    As BERT's create_pretraining_data.py, whose every copy of the corpus is an epoch
    here: a document is cut into chunks of sentences that reach T-3 tokens or, with
    probability `short_seq_prob` for a whole document, a random shorter length; a chunk
    is split at a random sentence into A and B; with probability `random_next_rate`
    (there 1/2), or if the chunk is one sentence, B is text from a random place of a
    random other document (label 1), and the next chunk begins with the sentences that
    it displaces. What is too long loses tokens from the longer side, at the front or
    the back with equal odds.

    Every epoch has as many rows as the evaluation's cut of the split has pairs, so that
    seeking needs no epoch before. Of what its own cut has beyond (a few percent where
    documents are very unlike) some are left out; where it has fewer some come twice.
    """

    def __init__(
        self,
        shards: Shards,
        tokenizer: Tokenizer,
        masking: Masking,
        sequence_length: int,
        *,
        short_seq_prob: float,
        random_next_rate: float,
    ):
        assert shards.sentences is not None, "shards framed for another way"
        if len(shards.documents) < 3:
            raise UserError(
                f"objective.name='next_sentence' needs at least two documents, since a "
                f"random next sentence comes from another one; the {shards.split} "
                f"split has {len(shards.documents) - 1}. Add text, cut it into more "
                "documents (data.document_boundary), or set objective.name='masked_lm'."
            )
        self.masking = masking
        self.shards = shards
        self.sequence_length = sequence_length
        self.short_seq_prob = short_seq_prob
        self.random_next_rate = random_next_rate
        self.max_tokens = sequence_length - 3  # [CLS], [SEP], [SEP]
        self.cls = tokenizer.special_ids["cls"]
        self.sep = tokenizer.special_ids["sep"]
        self.pad = tokenizer.special_ids["pad"]
        # The number of the first sentence of each document, and the end: [D+1].
        self.documents = np.searchsorted(shards.sentences, shards.documents)
        self.recent: dict[tuple[int, int], Pairs] = {}
        self.lock = threading.Lock()  # batches are made ahead by threads
        self.count = len(self.pairs(EVALUATION_SEED, 0).first)

    def __len__(self) -> int:
        return self.count

    def batch(self, visits: Visits) -> Batch:
        sentences = self.shards.sentences
        pairs = self.visited(visits.indices, visits.epochs, visits.seed)
        is_random = pairs.end == pairs.split
        a, a_end = sentences[pairs.first], sentences[pairs.split]
        document = np.searchsorted(self.documents, pairs.first, side="right") - 1
        target = self.targets(visits.seed, visits.epochs, document) - (a_end - a)
        first, end = self._random_next(document, target, visits.draws)
        b = sentences[np.where(is_random, first, pairs.split)]
        b_end = sentences[np.where(is_random, end, pairs.end)]
        from_a, from_b = truncation(a_end - a, b_end - b, self.max_tokens)
        front_a, front_b = visits.draws.heads(from_a), visits.draws.heads(from_b)
        rows = self._framed(
            a + front_a, a_end - a - from_a, b + front_b, b_end - b - from_b
        )
        return self.masking.mask(rows, visits.draws) | {
            "next_sentence": is_random.astype(np.int32),
            "next_sentence_weights": np.ones(len(a), np.float32),
        }

    def pairs(self, seed: int, epoch: int) -> Pairs:
        """All pairs of an epoch."""
        with self.lock:
            if (seed, epoch) not in self.recent:
                documents = np.arange(len(self.documents) - 1)
                self.recent[seed, epoch] = cut_into_pairs(
                    self.shards.sentences,
                    self.documents,
                    self.targets(seed, np.full_like(documents, epoch), documents),
                    self.random_next_rate,
                    draws.starts_of(draws.CUTS, seed, epoch, rows=documents),
                )
                if len(self.recent) > CUTS_KEPT:
                    del self.recent[next(iter(self.recent))]
            return self.recent[seed, epoch]

    def visited(
        self,
        indices: Int64[np.ndarray, " B"],
        epochs: Int64[np.ndarray, " B"],
        seed: int,
    ) -> Pairs:
        """The pairs of some rows."""
        found = Pairs(*(np.empty_like(indices) for _ in Pairs._fields))
        for epoch in np.unique(epochs).tolist():
            pairs, rows = self.pairs(seed, epoch), epochs == epoch
            # Which are left out or come twice shall not be the same ones each time.
            key = draws.starts_of(draws.CUTS, seed, rows=np.array([epoch]))
            shift = int(key[0] % np.uint64(len(pairs.first)))
            places = (indices[rows] + shift) % len(pairs.first)
            for array, values in zip(found, pairs, strict=True):
                array[rows] = values[places]
        return found

    def targets(
        self,
        seed: int,
        epochs: Int64[np.ndarray, " N"],
        documents: Int64[np.ndarray, " N"],
    ) -> Int64[np.ndarray, " N"]:
        """The length of a document's chunks in an epoch: all that fits, or a random
        shorter one."""
        starts = draws.starts_of(draws.LENGTHS, seed, rows=epochs)
        drawn = Draws(draws.numbers(starts, documents.astype(np.uint64)))
        is_short = drawn.uniform(1)[:, 0] < self.short_seq_prob
        shorter = 2 + drawn.below(np.full_like(documents, self.max_tokens - 1))
        return np.where(is_short, shorter, self.max_tokens)

    def _random_next(
        self,
        documents: Int64[np.ndarray, " B"],
        targets: Int64[np.ndarray, " B"],
        drawn: Draws,
    ) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """Sentences first .. end-1 from a random start in another document on, until
        there are so many tokens, or one sentence."""
        other = drawn.below(np.full_like(documents, len(self.documents) - 2))
        other += other >= documents
        begin, close = self.documents[other], self.documents[other + 1]
        first = begin + drawn.below(close - begin)
        sentences = self.shards.sentences
        filled = np.searchsorted(sentences, sentences[first] + np.maximum(targets, 1))
        return first, np.minimum(filled, close)

    def _framed(
        self,
        a: Int64[np.ndarray, " B"],
        a_size: Int64[np.ndarray, " B"],
        b: Int64[np.ndarray, " B"],
        b_size: Int64[np.ndarray, " B"],
    ) -> Batch:
        """Two stretches of the stream a row, by their beginnings and sizes."""
        columns = np.arange(self.sequence_length, dtype=np.int32)
        between = (a_size + 1)[:, None]
        last = between + (b_size + 1)[:, None]
        is_second = (columns > between) & (columns <= last)
        is_real = columns <= last
        is_text = is_real & (columns > 0) & (columns != between) & (columns < last)
        begin = np.where(is_second, b[:, None] - between - 1, a[:, None] - 1)
        tokens = self.shards.tokens[np.where(is_text, begin + columns, 0)]
        frame = np.where(is_real, self.sep, self.pad)
        frame[:, 0] = self.cls
        return {
            "tokens": np.where(is_text, tokens, frame).astype(np.int32),
            "segment_ids": is_real.astype(np.int32),
            "positions": columns * is_real,
            "token_types": is_second.astype(np.int32),
        }


def cut_into_pairs(
    sentences: Int64[np.ndarray, " S_plus_1"],
    documents: Int64[np.ndarray, " D_plus_1"],
    targets: Int64[np.ndarray, " D"],
    random_next_rate: float,
    starts: UInt64[np.ndarray, " D"],
) -> Pairs:
    """Cuts documents into chunks of sentences that reach their length, and these into
    A and B. All documents advance together, one pair a turn.

    Args:
      sentences: where sentences begin in the stream of tokens, and its end.
      documents: the number of the first sentence of each document, and the end.
      targets: length in tokens of each document's chunks, >= 1.
      random_next_rate: share of random B, beside chunks of one sentence.
      starts: what each document draws from.

    Returns:
      The first pair of each document, then the second of each that has one, and so on.
    """
    active, first = np.arange(len(documents) - 1), documents[:-1]
    turns = []
    while len(active):
        turn = np.array([len(turns)], np.uint64)
        drawn = Draws(draws.numbers(starts[active], turn))
        reached = np.searchsorted(sentences, sentences[first] + targets[active])
        end = np.minimum(reached, documents[active + 1])
        split = first + 1 + drawn.below(end - first - 1)
        # What a random B displaces comes next: the pair ends where it was split.
        is_random = drawn.uniform(1)[:, 0] < random_next_rate
        end = np.where(is_random, split, end)
        turns.append(Pairs(first, split, end))
        more = end < documents[active + 1]
        active, first = active[more], end[more]
    return Pairs(*map(np.concatenate, zip(*turns, strict=True)))


def truncation(
    a: Int64[np.ndarray, " B"], b: Int64[np.ndarray, " B"], max_tokens: int
) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
    """How many tokens the sides of pairs lose until both fit, as BERT's code has it.

    There they go one by one from the longer side (from b if equal), each at the front
    or the back with equal odds; so the number lost at the front is binomial.
    """
    excess = np.maximum(a + b - max_tokens, 0)
    to_equal = np.minimum(excess, abs(a - b))
    rest = excess - to_equal
    from_a = np.where(a > b, to_equal, 0) + rest // 2
    return from_a, excess - from_a


def make_examples(
    objective: Objective, tokenizer: Tokenizer, sequence_length: int
) -> Callable[[Shards], NextSentenceExamples]:
    masking = masked_words.make_masking(objective, tokenizer)
    return lambda split: NextSentenceExamples(
        split,
        tokenizer,
        masking,
        sequence_length,
        short_seq_prob=objective.short_seq_prob,
        random_next_rate=objective.random_next_rate,
    )


def loss_terms(_: Objective, model: Any, logit_chunks: int) -> Callable:
    """The masked tokens, and whether sentence B follows sentence A."""
    from models.transformer import logits
    from objectives.cross_entropy import weighted_cross_entropy

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict:
        output = model.apply(params, batch, dropout_key)
        return {
            "masked_lm": word_loss(output["masked_lm"], batch, logit_chunks),
            "next_sentence": weighted_cross_entropy(
                logits(output["next_sentence"]),
                batch["next_sentence"],
                batch["next_sentence_weights"],
            ),
        }

    return terms


PRETRAINING = Pretraining(
    special_tokens=BERT_SPECIAL_TOKENS,
    roles=masked_words.ROLES,
    # Bare sentences: the pairs get their frame when they are drawn.
    framing=lambda _: Framing(None, None, split_sentences=True),
    examples=make_examples,
    outputs=("masked_lm", "next_sentence"),
    sees=("both",),
    loss_terms=loss_terms,
    predicted=lambda objective, _: objective.max_predictions,
    measures=masked_words.MEASURES,
    lines=functools.partial(masked_words.lines, loss="masked_lm_loss"),
    evaluation=masked_words.evaluation,
    commands=("fill_mask",),
    settings=(
        *masked_words.SETTINGS,
        Setting(
            "objective.short_seq_prob",
            float,
            "Share of documents in chunks of a random shorter length; BERT's is 0.1.",
            ">=0 <=1",
        ),
        Setting(
            "objective.random_next_rate",
            float,
            "Share of random B, beside chunks of one sentence; BERT's is 0.5.",
            ">=0 <=1",
        ),
    ),
    rules=masked_words.RULES,
    tiny=masked_words.tiny,
)
