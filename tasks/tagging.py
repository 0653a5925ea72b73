"""A tag for each word of a sentence, such as B-LOC for the first word of a place.

The first piece of a word is labelled, the others predict nothing. (Devlin et al. 2019,
section 5.3) A tag of -100 says that the word is not counted.
"""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data.labelled import Record
from data.tokenizers import Tokenizer
from errors import UserError
from tasks import counts, scores
from tasks.encoding import (
    Encoded,
    Examples,
    Split,
    Task,
    joined,
    list_of,
    word_prefix,
)
from tasks.record import HeadSpec, Kind
from tasks.scores import Batch

NOT_COUNTED = "-100"  # as in token labels of transformers and PyTorch
ENTITY_TAG = re.compile(r"O|[BIESULM]-.+")
# BILOU and BMES say otherwise what IOBES says, which seqeval reads.
AS_IOBES = {"U-": "S-", "L-": "E-", "M-": "I-"}


def tags_of(record: Record, task: Task) -> list[str]:
    tags = list_of(record, task.label_column, "a list of tags")
    return [tag.strip() for tag in tags]


def counted_tags(record: Record, task: Task) -> list[str]:
    return [tag for tag in tags_of(record, task) if tag != NOT_COUNTED]


def misfit(
    train: list[Record], task: Task, labels: tuple[str, ...], metric: str
) -> str | None:
    others = [label for label in labels if not ENTITY_TAG.fullmatch(label)]
    if metric != "accuracy" and others:
        shown = ", ".join(map(repr, others[:3]))
        return (
            f"task.metric={metric!r} counts entities, whose tags are O and B-TYPE, "
            "I-TYPE (or those of IOBES, BILOU, BMES); the tags of the data have "
            f"{shown}: rewrite them, or --config.task.metric=accuracy"
        )
    return scores.only_one(
        (tag for record in train for tag in counted_tags(record, task)), task
    )


def encode(split: Split) -> tuple[list[Encoded], list[str]]:
    """`labels` and `weights` are those of the tokens; `word_ids` number the first
    pieces of the words 1, 2, .. and are 0 elsewhere. Words at the end may be cut."""
    task, tokenizer = split.task, split.tokenizer
    prefix = word_prefix(tokenizer)
    sentences = [
        list_of(record, task.text_columns[0], "a list of words")
        for record in split.records
    ]
    flat = tokenizer.encode_batch(
        [prefix + word for words in sentences for word in words]
    )
    room = split.max_length - 2
    encoded, cuts = [], []
    first = 0
    for record, words in zip(split.records, sentences, strict=True):
        if not words:
            raise UserError(f"{record.place}: a sentence without words; remove it")
        pieces = [
            word_pieces(ids, word, record, tokenizer)
            for word, ids in zip(words, flat[first : first + len(words)], strict=True)
        ]
        first += len(words)
        tags = tag_ids(split, record, words)
        begins = np.cumsum([0, *map(len, pieces)])[:-1]
        shown = int(np.searchsorted(begins, room))
        if begins[-1] + len(pieces[-1]) > room:
            cuts.append(f"{record.place}: {shown} of {len(words)} words are in view")
        sequence = split.frame.around(np.concatenate(pieces)[:room])
        size, places = len(sequence["tokens"]), begins[:shown] + 1
        sequence["labels"] = np.zeros(size, np.int32)
        sequence["labels"][places] = [tag or 0 for tag in tags[:shown]]
        sequence["weights"] = np.zeros(size, np.float32)
        sequence["weights"][places] = [tag is not None for tag in tags[:shown]]
        sequence["word_ids"] = np.zeros(size, np.int32)
        sequence["word_ids"][places] = np.arange(shown) + 1
        encoded.append(joined([sequence], {}, {}))
    return encoded, cuts


def word_pieces(
    ids: Int[np.ndarray, " _"], word: str, record: Record, tokenizer: Tokenizer
) -> Int[np.ndarray, " _"]:
    """A word's pieces; one that the tokenizer drops, such as U+200B, is unknown."""
    if len(ids):
        return ids
    if not word.strip() or "unk" not in tokenizer.special_ids:
        raise UserError(f"{record.place}: the word {word!r} has no text; remove it")
    return np.array([tokenizer.special_ids["unk"]], np.int32)


def tag_ids(split: Split, record: Record, words: list[str]) -> list[int | None]:
    """The id of each word's tag; None: not counted."""
    if not split.labelled:
        return [None] * len(words)
    tags = tags_of(record, split.task)
    if len(tags) != len(words):
        raise UserError(f"{record.place}: {len(words)} words but {len(tags)} tags")
    ids = iter(split.label_ids(record, counted_tags))
    return [None if tag == NOT_COUNTED else next(ids) for tag in tags]


def found(
    batch: Batch, token_scores: Float[np.ndarray, "B T K"]
) -> Iterator[tuple[int, Float[np.ndarray, "W K"]]]:
    """The scores of the words in view."""
    for index, row, is_own in scores.own_tokens(batch):
        yield index, token_scores[row, is_own & (batch["word_ids"][row] > 0)]


def predict(
    examples: Examples,
    records: list[Record],
    found: dict[int, Float[np.ndarray, "W K"]],
    task: Task,
) -> list[dict[str, Any]]:
    """Tags, one a word, and the probability of each; words out of view: O or, where
    that is no label, the first one, and 0.0."""
    labels = examples.labels
    unseen = "O" if "O" in labels else labels[0]
    predicted = []
    for index, record in enumerate(records):
        shares = scores.shares(found[index])
        out_of_view = len(record.fields[task.text_columns[0]]) - len(shares)
        tags = [labels[best] for best in shares.argmax(axis=-1)]
        sure = shares.max(axis=-1).tolist()
        predicted.append(
            {
                "tags": tags + [unseen] * out_of_view,
                "probabilities": sure + [0.0] * out_of_view,
            }
        )
    return predicted


def measure(
    predicted: list[dict], labels: tuple[str, ...], task: Task
) -> dict[str, float]:
    """Word accuracy; entity F1, precision and recall as conlleval and seqeval have it,
    where all labels are tags of entities."""
    from seqeval import metrics  # a second to import

    sentences = [
        [
            (gold, found)
            for gold, found in zip(one["gold"], one["tags"], strict=True)
            if gold != NOT_COUNTED
        ]
        for one in predicted
    ]
    right = [gold == found for words in sentences for gold, found in words]
    values = {"accuracy": sum(right) / max(1, len(right))}
    if all(map(ENTITY_TAG.fullmatch, labels)):
        gold, found = (
            [[as_iobes(pair[side]) for pair in words] for words in sentences]
            for side in (0, 1)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where nothing is predicted
            values |= {
                "entity_f1": float(metrics.f1_score(gold, found)),
                "entity_precision": float(metrics.precision_score(gold, found)),
                "entity_recall": float(metrics.recall_score(gold, found)),
            }
    return values


def as_iobes(tag: str) -> str:
    return AS_IOBES.get(tag[:2], tag[:2]) + tag[2:]


def is_constant(predicted: list[dict[str, Any]]) -> bool:
    tags = {tag for prediction in predicted for tag in prediction["tags"]}
    return len(predicted) > 1 and len(tags) == 1


def floor(examples: Examples) -> float:
    arrays = [example.arrays for example in examples.encoded]
    return scores.entropy(
        np.concatenate([a["labels"][a["weights"] > 0] for a in arrays])
    )


def rows(
    task: Task, labels: tuple[str, ...], record: Record, prediction: dict[str, Any]
) -> Iterator[dict[str, str]]:
    """A word a row; an empty one ends the sentence."""
    for place, word in enumerate(record.fields[task.text_columns[0]]):
        gold = {}
        if "gold" in prediction:
            gold = {"gold": "".join(prediction["gold"][place : place + 1])}
        yield {
            "tag": prediction["tags"][place],
            "probability": f"{prediction['probabilities'][place]:.3f}",
            **gold,
            "text": word,
        }
    yield {}


def described(
    batch: Batch, examples: Examples, tokenizer: Tokenizer, row: int
) -> list[str]:
    (places,) = np.nonzero(batch["weights"][row])
    names = [examples.labels[label] for label in batch["labels"][row, places]]
    words = [tokenizer.pieces[token] for token in batch["tokens"][row, places]]
    return ["  " + " ".join(f"{w}/{n}" for w, n in zip(words, names, strict=True))]


def loss(output: Any, batch: dict) -> tuple:
    """Of the scores [B, T, K] of tags."""
    from objectives.cross_entropy import weighted_cross_entropy

    return weighted_cross_entropy(output, batch["labels"], batch["weights"])


KIND = Kind(
    columns={"text_columns": (1, 1)},
    labels=counted_tags,
    misfit=misfit,
    encode=encode,
    head=HeadSpec(reads="tokens", num_outputs=lambda labels: labels),
    loss=loss,
    found=found,
    predict=predict,
    metrics=("entity_f1", "entity_precision", "entity_recall", "accuracy"),
    measure=measure,
    is_constant=is_constant,
    floor=floor,
    lines=counts.of_words,
    rows=rows,
    widths=lambda label: {"tag": label},
    described=described,
    line=("words",),
    command="tag",
    help="a tag for each word, apart by spaces",
    settings=(),
    rules=(),
)
