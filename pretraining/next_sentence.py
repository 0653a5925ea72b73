"""BERT's two tasks: predict the masked tokens, and whether B follows A.

Source: Devlin et al. 2019, section 3.1; create_pretraining_data.py. A label is 0 where
B follows and 1 where it is random text, as there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from data.masking import Masking
from data.shards import Framing, Shards
from data.tokenizers import BERT_SPECIAL_TOKENS, Tokenizer
from data.windows import Example, padded
from errors import UserError
from pretraining import masked_words
from pretraining.language_model import word_loss
from pretraining.record import Objective, Pretraining
from settings import Setting

# Fixed, not the run's seed: every run cuts the text into the same chunks.
CHUNK_SEED = 0


class NextSentenceExamples:
    """Pairs `[CLS] A [SEP] B [SEP]`, masked, with next sentence prediction.

    As in BERT's create_pretraining_data.py: a document is cut into chunks of sentences
    that reach T-3 tokens or, with probability `short_seq_prob` for a whole document, a
    random shorter length; a chunk is split at a random sentence into A and B; with
    probability `random_next_rate` (there 1/2), or if the chunk is one sentence, B is
    replaced by text from a random place of a random other document (label 1). What is
    too long loses tokens from the longer side, at the front or the back with equal
    odds.

    Unlike there, the chunks are the same at every visit, and the split, the partner and
    the masks are drawn anew: the sentences that a random B displaces are not put back
    for the next chunk, they are only not shown in this visit.
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
        self.random_next_rate = random_next_rate
        self.max_tokens = sequence_length - 3  # [CLS], [SEP], [SEP]
        self.cls = tokenizer.special_ids["cls"]
        self.sep = tokenizer.special_ids["sep"]
        self.pad = tokenizer.special_ids["pad"]
        # The number of the first sentence of each document, and the end: [D+1].
        self.documents = np.searchsorted(shards.sentences, shards.documents)
        self.targets = _target_lengths(
            len(self.documents) - 1, self.max_tokens, short_seq_prob
        )
        self.chunks = sentence_chunks(shards.sentences, self.documents, self.targets)

    def __len__(self) -> int:
        return len(self.chunks) - 1

    def example(self, index: int, generator: np.random.Generator) -> Example:
        first, end = self.chunks[index : index + 2].tolist()
        document = int(np.searchsorted(self.documents, first, side="right")) - 1
        target = int(self.targets[document])
        split = end
        if end - first > 1:
            split = int(generator.integers(first + 1, end))
        is_random = end - first == 1 or generator.random() < self.random_next_rate
        a = self._read(first, split)
        b = self._read(split, end)
        if is_random:
            b = self._random_next(document, target - len(a), generator)
        a, b = truncated_pair(a, b, self.max_tokens, generator)
        tokens = np.concatenate([[self.cls], a, [self.sep], b, [self.sep]])
        size = len(tokens)
        row = padded(
            {
                "tokens": tokens.astype(np.int32),
                "segment_ids": np.ones(size, np.int32),
                "positions": np.arange(size, dtype=np.int32),
                "token_types": (np.arange(size) >= len(a) + 2).astype(np.int32),
            },
            self.sequence_length,
        )
        row["tokens"][size:] = self.pad
        row = self.masking.mask(row, generator)
        row["next_sentence"] = np.array(is_random, np.int32)
        row["next_sentence_weights"] = np.array(1, np.float32)
        return row

    def _read(self, first: int, end: int) -> Int32[np.ndarray, " N"]:
        """The tokens of sentences first .. end-1."""
        start, stop = self.shards.sentences[[first, end]].tolist()
        return self.shards.read(start, stop)

    def _random_next(
        self, document: int, target: int, generator: np.random.Generator
    ) -> Int32[np.ndarray, " N"]:
        """Sentences from a random start in another document, until `target` tokens."""
        other = int(generator.integers(len(self.documents) - 2))
        other += other >= document
        first = int(generator.integers(*self.documents[[other, other + 1]]))
        sentences = self.shards.sentences
        filled = np.searchsorted(sentences, sentences[first] + max(target, 1))
        return self._read(first, min(int(filled), int(self.documents[other + 1])))


def sentence_chunks(
    sentences: Int64[np.ndarray, " S_plus_1"],
    documents: Int64[np.ndarray, " D_plus_1"],
    targets: Int64[np.ndarray, " D"],
) -> Int64[np.ndarray, " C_plus_1"]:
    """Cuts documents into chunks of sentences that reach their target length.

    A chunk takes sentences until it has `targets[document]` tokens or its document
    ends. All documents advance together, one chunk a round.

    Args:
      sentences: where sentences begin in the stream of tokens, and its end.
      documents: the number of the first sentence of each document, and the end.
      targets: length in tokens of each document's chunks, >= 1.

    Returns:
      The number of the first sentence of each chunk, and the end.
    """
    active = np.arange(len(documents) - 1)
    first = documents[:-1]
    rounds = [documents[-1:]]
    while len(active):
        rounds.append(first)
        reached = np.searchsorted(sentences, sentences[first] + targets[active])
        end = np.minimum(reached, documents[active + 1])
        more = end < documents[active + 1]
        active, first = active[more], end[more]
    return np.sort(np.concatenate(rounds))


def truncated_pair(
    a: Int32[np.ndarray, " A"],
    b: Int32[np.ndarray, " B"],
    max_tokens: int,
    generator: np.random.Generator,
) -> tuple[Int32[np.ndarray, " A_kept"], Int32[np.ndarray, " B_kept"]]:
    """Drops tokens of the longer side (of b if equal) until both fit, as BERT does.

    BERT drops them one by one, each at the front or at the back with equal odds. How
    many each side loses is certain, and the number lost at the front is binomial.
    """
    excess = max(0, len(a) + len(b) - max_tokens)
    to_equal = min(excess, abs(len(a) - len(b)))
    from_a, from_b = (to_equal, 0) if len(a) > len(b) else (0, to_equal)
    from_b += (excess - to_equal + 1) // 2
    from_a += (excess - to_equal) // 2
    front_a = int(generator.binomial(from_a, 0.5))
    front_b = int(generator.binomial(from_b, 0.5))
    return (
        a[front_a : len(a) - (from_a - front_a)],
        b[front_b : len(b) - (from_b - front_b)],
    )


def _target_lengths(
    num_documents: int, max_tokens: int, short_seq_prob: float
) -> Int64[np.ndarray, " D"]:
    """The length of each document's chunks: all that fits, or a random shorter one."""
    generator = np.random.default_rng(CHUNK_SEED)
    is_short = generator.random(num_documents) < short_seq_prob
    shorter = generator.integers(2, max_tokens, num_documents, endpoint=True)
    return np.where(is_short, shorter, max_tokens)


def make_examples(
    objective: Objective, split: Shards, tokenizer: Tokenizer, sequence_length: int
) -> NextSentenceExamples:
    return NextSentenceExamples(
        split,
        tokenizer,
        masked_words.make_masking(objective, tokenizer),
        sequence_length,
        short_seq_prob=objective.short_seq_prob,
        random_next_rate=objective.random_next_rate,
    )


def loss_terms(model: Any, logit_chunks: int) -> Callable:
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
    sees="both",
    loss_terms=loss_terms,
    predicted=lambda objective, _: objective.max_predictions,
    line=masked_words.line,
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
