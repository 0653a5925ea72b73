"""Token shards to batches for pre-training: what is shown, and what is predicted.

An example is a pure function of (shards, example index, random generator); which
example comes at which step, and its generator, are pure functions of (seed, step). So
any step can be computed alone: resuming needs the step and nothing else, and any number
of hosts sees the same global batches.

Arrays of an example (a batch adds the axis B in front): `tokens [T]`; `segment_ids [T]`
(1, 2, .. for the documents packed into the row, 0 for padding); `positions [T]`;
`targets` and `weights` at `[T]` for the causal objective, or at `[P]` with
`predict_positions [P]` for the masked one, which adds `token_types [T]`; and for next
sentence prediction `next_sentence []` and `next_sentence_weights []`.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int32, Int64, Shaped

from data.shards import Framing, Shards
from data.tokenizers import Tokenizer
from errors import UserError

if TYPE_CHECKING:
    import grain

Example = dict[str, Shaped[np.ndarray, "..."]]
Batch = dict[str, Shaped[np.ndarray, "B ..."]]

MIN_SEQUENCE_LENGTH = 8
MASKED_LM_ROLES = ("pad", "cls", "sep", "mask")
# Fixed, not the run's seed: every run is evaluated on the same masks, and cuts the text
# into the same chunks.
EVALUATION_SEED = 0
CHUNK_SEED = 0


def framing(objective_name: str, next_sentence: bool, tokenizer: Tokenizer) -> Framing:
    """How the shards must be laid out for an objective, "causal_lm" or "masked_lm".

    Causal: the end-of-text token stands before and after each document if the
    vocabulary has one, so that first tokens and ends are predicted as well. Masked:
    each document is `[CLS] ... [SEP]`. Masked with next sentence prediction: bare
    sentences, since the pairs get their frame when they are drawn.
    """
    if objective_name == "causal_lm":
        end_of_text = tokenizer.special_ids.get("end_of_text")
        return Framing(end_of_text, end_of_text, False)
    assert objective_name == "masked_lm", objective_name
    missing = [role for role in MASKED_LM_ROLES if role not in tokenizer.special_ids]
    if missing:
        raise UserError(
            f"objective.name='masked_lm' needs the special tokens "
            f"{', '.join(MASKED_LM_ROLES)}; the tokenizer has no {', '.join(missing)} "
            f"(it has {', '.join(sorted(tokenizer.special_ids)) or 'none'}). Train a "
            "tokenizer with BERT's special tokens, or bring one that has them."
        )
    if next_sentence:
        return Framing(None, None, True)
    return Framing(tokenizer.special_ids["cls"], tokenizer.special_ids["sep"], False)


class CausalLmExamples:
    """Windows of the stream, each token predicting the next one of its document.

    Window i is stream[i*T : (i+1)*T]. Every token that has a predecessor in its
    document is predicted exactly once over all windows. (GPT, section 3.1.)
    """

    def __init__(self, shards: Shards, sequence_length: int):
        _check_sequence_length(sequence_length)
        if shards.num_tokens < 2:
            raise _too_little_text(shards)
        self.shards = shards
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return (self.shards.num_tokens - 2) // self.sequence_length + 1

    def example(self, index: int, generator: np.random.Generator | None) -> Example:
        """Nothing is drawn; the generator is there for the other objectives' sake."""
        start = index * self.sequence_length
        # One more than the window, for the last target.
        stop = min(start + self.sequence_length + 1, self.shards.num_tokens)
        stream = self.shards.read(start, stop)
        segment_ids, positions = _segments(self.shards.documents, start, stop)
        size = min(self.sequence_length, stop - start)
        targets = np.zeros(size, np.int32)
        weights = np.zeros(size, np.float32)
        targets[: len(stream) - 1] = stream[1:]
        weights[: len(stream) - 1] = segment_ids[1:] == segment_ids[:-1]
        return _padded(
            {
                "tokens": stream[:size],
                "segment_ids": segment_ids[:size],
                "positions": positions[:size],
                "targets": np.where(weights > 0, targets, 0),
                "weights": weights,
            },
            self.sequence_length,
        )


class MaskedLmExamples:
    """Windows of the stream for the masked objective without next sentence prediction.

    Rows are packed full: a window goes on into the following documents, which do not
    see each other (`segment_ids`). Each window begins with [CLS], put in front where it
    cuts a document, and advances by T-1 tokens.
    """

    def __init__(
        self,
        shards: Shards,
        tokenizer: Tokenizer,
        sequence_length: int,
        *,
        mask_rate: float,
        mask_token_rate: float,
        random_token_rate: float,
        max_predictions: int,
        whole_word: bool,
    ):
        _check_sequence_length(sequence_length)
        if shards.num_tokens < 2:
            raise _too_little_text(shards)
        self.masking = Masking(
            tokenizer,
            mask_rate=mask_rate,
            mask_token_rate=mask_token_rate,
            random_token_rate=random_token_rate,
            max_predictions=max_predictions,
            whole_word=whole_word,
        )
        self.shards = shards
        self.sequence_length = sequence_length
        self.cls = tokenizer.special_ids["cls"]
        self.pad = tokenizer.special_ids["pad"]
        assert shards.read(0, 1)[0] == self.cls, "shards framed for another objective"

    def __len__(self) -> int:
        # No window for the last token alone: it is a [SEP], nothing to predict.
        return (self.shards.num_tokens - 2) // (self.sequence_length - 1) + 1

    def example(self, index: int, generator: np.random.Generator) -> Example:
        documents = self.shards.documents
        start = index * (self.sequence_length - 1)
        if documents[np.searchsorted(documents, start)] != start:
            start -= 1  # within a document: [CLS] takes the place of the token before
        stop = min(start + self.sequence_length, self.shards.num_tokens)
        tokens = self.shards.read(start, stop)
        tokens[0] = self.cls
        segment_ids, positions = _segments(documents, start, stop)
        row = _padded(
            {"tokens": tokens, "segment_ids": segment_ids, "positions": positions},
            self.sequence_length,
        )
        row["tokens"][len(tokens) :] = self.pad
        row["token_types"] = np.zeros(self.sequence_length, np.int32)
        return self.masking.mask(row, generator)


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
        sequence_length: int,
        *,
        mask_rate: float,
        mask_token_rate: float,
        random_token_rate: float,
        max_predictions: int,
        whole_word: bool,
        short_seq_prob: float,
        random_next_rate: float,
    ):
        _check_sequence_length(sequence_length)
        for name, rate, usual in (
            ("short_seq_prob", short_seq_prob, 0.1),
            ("random_next_rate", random_next_rate, 0.5),
        ):
            if not 0 <= rate <= 1:
                raise UserError(
                    f"objective.{name}={rate} is not a probability between 0 and 1; "
                    f"BERT's is {usual}."
                )
        assert shards.sentences is not None, "shards framed for another objective"
        if len(shards.documents) < 3:
            raise UserError(
                f"objective.next_sentence needs at least two documents, since a random "
                f"next sentence comes from another one; the {shards.split} split has "
                f"{len(shards.documents) - 1}. Add text, cut it into more documents "
                "(data.document_boundary), or set objective.next_sentence=False."
            )
        self.masking = Masking(
            tokenizer,
            mask_rate=mask_rate,
            mask_token_rate=mask_token_rate,
            random_token_rate=random_token_rate,
            max_predictions=max_predictions,
            whole_word=whole_word,
        )
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
        row = _padded(
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


class Masking:
    """The masked objective's corruption of a row. (BERT, section 3.1 and appendix A.1.)

    `mask_rate` of the row's real tokens, special ones counted as in BERT's code but
    never chosen, are to be predicted, at most `max_predictions` = P. Of these,
    `mask_token_rate` become [MASK], `random_token_rate` a random piece, the rest stay.

    Unlike BERT's code, random pieces are never special or unused ones, and with
    `whole_word` the pieces of a word share one fate; a word that would overflow the
    number to predict is skipped, as there.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        mask_rate: float,
        mask_token_rate: float,
        random_token_rate: float,
        max_predictions: int,
        whole_word: bool,
    ):
        _check_masking(mask_rate, mask_token_rate, random_token_rate, max_predictions)
        self.mask_rate = mask_rate
        self.mask_token_rate = mask_token_rate
        self.random_token_rate = random_token_rate
        self.max_predictions = max_predictions
        self.whole_word = whole_word
        self.mask_id = tokenizer.special_ids["mask"]
        self.starts_word = tokenizer.starts_word
        self.is_special = np.zeros(tokenizer.vocab_size, bool)
        self.is_special[list(tokenizer.special_ids.values())] = True
        # Rows kept free: BERT's "[unused7]", or an id without a piece.
        is_unused = [
            not piece or bool(re.fullmatch(r"\[unused\d+\]", piece))
            for piece in tokenizer.pieces
        ]
        self.replacements = np.flatnonzero(~self.is_special & ~np.array(is_unused))
        if not self.replacements.size:
            raise UserError("the tokenizer has no piece that is not a special token.")

    def mask(self, row: Example, generator: np.random.Generator) -> Example:
        """The row with some tokens replaced, and what is to be predicted, in order."""
        tokens, segment_ids = row["tokens"], row["segment_ids"]
        real = np.count_nonzero(segment_ids)
        quota = min(self.max_predictions, max(1, round(real * self.mask_rate)))
        candidates = np.flatnonzero((segment_ids > 0) & ~self.is_special[tokens])
        words = self._words(tokens, segment_ids, candidates)
        is_chosen = _choose_words(np.bincount(words), quota, generator)
        positions = candidates[is_chosen[words]]
        # One draw for a word, whatever its number of pieces.
        draw = generator.random(len(is_chosen))[words[is_chosen[words]]]
        targets = tokens[positions]
        random = generator.choice(self.replacements, len(positions))
        replaced = np.where(
            draw < self.mask_token_rate,
            self.mask_id,
            np.where(
                draw < self.mask_token_rate + self.random_token_rate, random, targets
            ),
        )
        corrupted = tokens.copy()
        corrupted[positions] = replaced
        predictions = {
            "predict_positions": positions.astype(np.int32),
            "targets": targets,
            "weights": np.ones(len(positions), np.float32),
        }
        return row | {"tokens": corrupted} | _padded(predictions, self.max_predictions)

    def _words(
        self,
        tokens: Int32[np.ndarray, " T"],
        segment_ids: Int32[np.ndarray, " T"],
        candidates: Int64[np.ndarray, " C"],
    ) -> Int64[np.ndarray, " C"]:
        """Which word of the row, 0, 1, .., each candidate belongs to."""
        if not self.whole_word:
            return np.arange(len(candidates))
        begins = (
            self.starts_word[tokens[candidates]]
            | (np.diff(candidates, prepend=-2) > 1)  # after a special token
            | (np.diff(segment_ids[candidates], prepend=0) > 0)
        )
        return np.cumsum(begins) - 1


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


Examples = CausalLmExamples | MaskedLmExamples | NextSentenceExamples


def training_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    host_index: int = 0,
    host_count: int = 1,
) -> "grain.MapDataset":
    """`[step]` is this host's rows of the global batch of that step; without end.

    Visit v = step * batch_size + row takes place v of an order shuffled anew in each
    epoch, and a generator seeded by (seed, v). Hosts take consecutive rows, so joined
    in order they give the batch of a single host.
    """
    import grain  # and with it jax, which preparing needs not

    rows = _rows_per_host(batch_size, host_count)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is not between 0 and 2**32 - 1.")
    return (
        grain.MapDataset.range(len(examples))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(examples.example)
        .batch(rows, drop_remainder=True)
        .slice(slice(host_index, None, host_count))
    )


def evaluation_batches(
    examples: Examples, *, batch_size: int, host_index: int = 0, host_count: int = 1
) -> "grain.MapDataset":
    """Every example once, in order; the last batch is filled with rows of weight 0.

    The masks depend on the example alone, so sums over all batches do not depend on
    the batch size.
    """
    import grain

    rows = _rows_per_host(batch_size, host_count)
    count = len(examples)

    def example_or_padding(index: int, generator: np.random.Generator) -> Example:
        example = examples.example(min(index, count - 1), generator)
        if index < count:
            return example
        return {name: np.zeros_like(array) for name, array in example.items()}

    num_batches = -(-count // batch_size)
    return (
        grain.MapDataset.range(num_batches * batch_size)
        .random_map(example_or_padding, seed=EVALUATION_SEED)
        .batch(rows, drop_remainder=True)
        .slice(slice(host_index, None, host_count))
    )


def prefetch(
    batches: "grain.MapDataset", start_step: int, num_threads: int
) -> Iterator[Batch]:
    """Batches from `start_step` on, made ahead by threads, in order.

    With 0 threads each is made when asked for. Whoever stops early just lets go of it;
    the interpreter's exit waits for the few batches under way, no longer.
    """
    import grain

    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=2 * num_threads
    )
    return iter(batches[start_step:].to_iter_dataset(options))


def describe(batch: Batch, tokenizer: Tokenizer, rows: int) -> str:
    """The first rows of a batch for a reader: decoded, predictions marked, padding.

    In masked rows a predicted piece is shown as {input -> target}. In causal rows each
    piece predicts the next one; `|` stands after a piece that predicts nothing.
    """
    lines = []
    for row in range(min(rows, len(batch["tokens"]))):
        example = {name: np.asarray(array[row]) for name, array in batch.items()}
        segment_ids = example["segment_ids"]
        real = np.count_nonzero(segment_ids)
        lines.append(
            f"row {row}: {real} tokens, {len(segment_ids) - real} padding, "
            f"{segment_ids.max()} document(s), "
            f"{np.count_nonzero(example['weights'])} predicted"
        )
        if "next_sentence" in example:
            label = "random (1)" if example["next_sentence"] else "is next (0)"
            lines.append(f"  next sentence: {label}")
        notes = _notes(example, tokenizer)
        for segment in range(1, segment_ids.max() + 1):
            places = np.flatnonzero(segment_ids == segment)
            text = _decoded(example["tokens"], places, notes, tokenizer)
            lines.append(f"  document {segment}: {text}")
    padding = np.mean(batch["segment_ids"] == 0)
    lines.append(f"padding: {padding:.1%} of the batch's {batch['tokens'].size} tokens")
    return "\n".join(lines)


def _notes(example: Example, tokenizer: Tokenizer) -> dict[int, str]:
    """What to show in place of the piece at a position."""
    tokens, pieces = example["tokens"], tokenizer.pieces
    if "predict_positions" in example:
        predicted = example["weights"] > 0
        return {
            position: f"{{{pieces[tokens[position]]} -> {pieces[target]}}}"
            for position, target in zip(
                example["predict_positions"][predicted].tolist(),
                example["targets"][predicted].tolist(),
                strict=True,
            )
        }
    last = np.flatnonzero((example["weights"] == 0) & (example["segment_ids"] > 0))
    return {position: f"{pieces[tokens[position]]} |" for position in last.tolist()}


def _decoded(
    tokens: Int32[np.ndarray, " T"],
    places: Int64[np.ndarray, " N"],
    notes: dict[int, str],
    tokenizer: Tokenizer,
) -> str:
    """The text of some positions, with special tokens and notes spelt out between."""
    special = set(tokenizer.special_ids.values())
    words, run = [], []
    for place in places.tolist():
        token = int(tokens[place])
        if place in notes or token in special:
            words += [tokenizer.decode(run), notes.get(place, tokenizer.pieces[token])]
            run = []
        else:
            run.append(token)
    words.append(tokenizer.decode(run))
    return " ".join(word.strip() for word in words if word.strip())


def _segments(
    documents: Int64[np.ndarray, " D_plus_1"], start: int, stop: int
) -> tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " N"]]:
    """Segment ids and positions of stream[start:stop], both anew at each document."""
    inside = documents[
        np.searchsorted(documents, start, side="right") : np.searchsorted(
            documents, stop
        )
    ]
    begins = np.zeros(stop - start, np.int32)
    begins[inside - start] = 1
    places = np.arange(stop - start, dtype=np.int32)
    return 1 + np.cumsum(begins, dtype=np.int32), places - np.maximum.accumulate(
        places * begins
    )


def _padded(example: Example, length: int) -> Example:
    """Arrays filled with zeros to a length."""
    padded = {}
    for name, array in example.items():
        padded[name] = np.zeros(length, array.dtype)
        padded[name][: len(array)] = array
    return padded


def _choose_words(
    sizes: Int64[np.ndarray, " W"], quota: int, generator: np.random.Generator
) -> Bool[np.ndarray, " W"]:
    """Words in random order until the quota of pieces is full; skips what overflows."""
    is_chosen = np.zeros(len(sizes), bool)
    pieces = sizes.tolist()
    for word in generator.permutation(len(sizes)).tolist():
        if pieces[word] <= quota:
            is_chosen[word] = True
            quota -= pieces[word]
            if not quota:
                break
    return is_chosen


def _target_lengths(
    num_documents: int, max_tokens: int, short_seq_prob: float
) -> Int64[np.ndarray, " D"]:
    """The length of each document's chunks: all that fits, or a random shorter one."""
    generator = np.random.default_rng(CHUNK_SEED)
    is_short = generator.random(num_documents) < short_seq_prob
    shorter = generator.integers(2, max_tokens, num_documents, endpoint=True)
    return np.where(is_short, shorter, max_tokens)


def _rows_per_host(batch_size: int, host_count: int) -> int:
    if batch_size < 1 or batch_size % host_count:
        raise UserError(
            f"data.batch_size={batch_size} does not divide over {host_count} host(s); "
            f"choose a multiple of {host_count}."
        )
    return batch_size // host_count


def _too_little_text(shards: Shards) -> UserError:
    return UserError(
        f"the {shards.split} split holds {shards.num_tokens} token(s): nothing to "
        "predict. Add text to data.corpus."
    )


def _check_sequence_length(sequence_length: int) -> None:
    if sequence_length < MIN_SEQUENCE_LENGTH:
        raise UserError(
            f"data.sequence_length={sequence_length} is too short; it must be at least "
            f"{MIN_SEQUENCE_LENGTH}."
        )


def _check_masking(
    mask_rate: float,
    mask_token_rate: float,
    random_token_rate: float,
    max_predictions: int,
) -> None:
    if not 0 < mask_rate <= 1:
        raise UserError(
            f"objective.mask_rate={mask_rate} is not in (0, 1]; BERT's is 0.15."
        )
    for name, rate in (
        ("mask_token_rate", mask_token_rate),
        ("random_token_rate", random_token_rate),
    ):
        if not 0 <= rate <= 1:
            raise UserError(f"objective.{name}={rate} is not between 0 and 1.")
    if mask_token_rate + random_token_rate > 1:
        raise UserError(
            f"objective.mask_token_rate={mask_token_rate} and objective."
            f"random_token_rate={random_token_rate} add up to more than 1; BERT's are "
            "0.8 and 0.1, and the rest of the predicted tokens stay as they are."
        )
    if max_predictions < 1:
        raise UserError(
            f"objective.max_predictions={max_predictions} must be at least 1; about "
            "data.sequence_length * objective.mask_rate is right."
        )
