"""How much alike two texts are, as a number.

A model that sees left only reads both orders, two sequences, whose states are added
(Radford et al. 2018, section 3.3). The loss is the squared error.
"""

import math
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from data.labelled import Record
from data.tokenizers import Tokenizer
from errors import UserError
from tasks import counts, scores
from tasks.encoding import Encoded, Examples, Split, Task, joined, text_of
from tasks.record import HeadSpec, Kind
from tasks.scores import Batch

# Its square, the loss, must be a float32, and so must be the sums of squares.
LARGEST_SCORE = 1e15


def encode(split: Split) -> tuple[list[Encoded], list[str]]:
    shown, cuts = split.texts()
    encoded = []
    for record, sides in zip(split.records, shown, strict=True):
        sequences = [split.frame.around(*sides)]
        if not split.frame.sees_both:
            sequences.append(split.frame.around(*reversed(sides)))
        score = score_of(record, split.task) if split.labelled else 0.0
        slot = {"scores": np.float32(score), "weights": np.float32(split.labelled)}
        places = {"readout_positions": split.frame.readouts(sequences)}
        encoded.append(joined(sequences, slot, places))
    return encoded, cuts


def score_of(record: Record, task: Task) -> float:
    text = text_of(record, task.label_column)
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(
            f"{record.place}: the score in column {task.label_column!r} is {text!r}, "
            "which is not a number"
        )
    if abs(score) > LARGEST_SCORE:
        raise UserError(
            f"{record.place}: the score in column {task.label_column!r} is {text!r}, "
            f"more than {LARGEST_SCORE:g}, whose square is no float32: scale the scores"
        )
    return score


def predict(
    examples: Examples,
    records: list[Record],
    found: dict[int, np.floating],
    task: Task,
) -> list[dict[str, Any]]:
    return [{"score": float(found[index])} for index in range(len(records))]


def measure(
    predicted: list[dict], labels: tuple[str, ...], task: Task
) -> dict[str, float]:
    """Pearson's and Spearman's correlations; 0 where one side is constant."""
    from scipy import stats  # a second to import

    found = scores.column(predicted, "score")
    gold = [float(score) for score in scores.column(predicted, "gold")]
    if len({*found}) < 2 or len({*gold}) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(stats.pearsonr(found, gold).statistic),
        "spearman": float(stats.spearmanr(found, gold).statistic),
    }


def is_constant(predicted: list[dict[str, Any]]) -> bool:
    """Within a hundredth of the gold scores' spread."""
    if len(predicted) < 2:
        return False
    gold = [float(score) for score in scores.column(predicted, "gold")]
    spread = statistics.pstdev(scores.column(predicted, "score"))
    return spread < 0.01 * statistics.pstdev(gold)


def rows(
    task: Task, labels: tuple[str, ...], record: Record, prediction: dict[str, Any]
) -> Iterator[dict[str, str]]:
    yield {
        "score": f"{prediction['score']:.3f}",
        **scores.gold_cell(prediction),
        "text": scores.shown_text(record, task),
    }


def described(
    batch: Batch, examples: Examples, tokenizer: Tokenizer, row: int
) -> list[str]:
    return scores.describe_slots(
        batch, row, lambda slot: f"{batch['scores'][row, slot]:g}"
    )


def loss(output: Any, batch: dict) -> tuple:
    """Of the scores [B, E, 1]."""
    from objectives.regression import regression

    return regression(output[..., 0], batch["scores"], batch["weights"])


KIND = Kind(
    columns={"text_columns": (2, 2)},
    labels=None,
    misfit=lambda train, task, *_: scores.only_one(
        (score_of(record, task) for record in train), task
    ),
    encode=encode,
    head=HeadSpec(reads="examples", num_outputs=lambda labels: 1),
    loss=loss,
    found=lambda batch, found: scores.by_slot(batch, found[..., 0]),
    predict=predict,
    metrics=("pearson", "spearman"),
    measure=measure,
    is_constant=is_constant,
    floor=lambda examples: float(
        np.var([example.slot["scores"] for example in examples.encoded])
    ),
    lines=counts.of_pairs,
    rows=rows,
    widths=lambda label: {"score": 6},
    described=described,
    line=("texts",),
    command="similarity",
    help="how much alike two texts are",
    settings=(),
    rules=(),
)
