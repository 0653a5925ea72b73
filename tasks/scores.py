"""From the scores of a head to predictions: what the kinds share."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from data.labelled import Record
from data.tokenizers import Tokenizer
from tasks.encoding import Examples, Task

Batch = dict[str, Shaped[np.ndarray, "B ..."]]


def slots(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Row, slot and index of each example in a batch."""
    for row, slot in np.argwhere(batch["example_ids"] >= 0).tolist():
        yield row, slot, int(batch["example_ids"][row, slot])


def by_slot(
    batch: Batch, scores: Float[np.ndarray, "B E *K"]
) -> Iterator[tuple[int, Float[np.ndarray, "*K"] | np.floating]]:
    """Index and scores of each example."""
    for row, slot, index in slots(batch):
        yield index, scores[row, slot]


def own_tokens(
    batch: Batch,
) -> Iterator[tuple[int, int, Shaped[np.ndarray, " T"]]]:
    """Index, row and tokens of each example that is one sequence: slot i has segment
    i + 1."""
    for row, slot, index in slots(batch):
        yield index, row, batch["segment_ids"][row] == slot + 1


def shares(scores: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "... K"]:
    """Softmax in float64."""
    scores = scores.astype(np.float64)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def predict_labels(
    examples: Examples,
    records: list[Record],
    found: dict[int, Float[np.ndarray, " K"]],
    task: Task,
) -> list[dict[str, Any]]:
    """The likeliest label, and the probabilities by name."""
    predicted = []
    for index in range(len(records)):
        probabilities = shares(found[index])
        named = dict(zip(examples.labels, probabilities.tolist(), strict=True))
        best = examples.labels[probabilities.argmax()]
        predicted.append({"label": best, "probabilities": named})
    return predicted


def column(predicted: list[dict[str, Any]], name: str) -> list[Any]:
    return [prediction[name] for prediction in predicted]


def all_same(values: list[Any]) -> bool:
    """Whether several values are all one."""
    return len(values) > 1 and len({*values}) == 1


def only_one(values: Iterable[Any], task: Task) -> str | None:
    """Why nothing can be learnt where all training records say the same, if they do."""
    distinct = {*values}
    if len(distinct) > 1:
        return None
    found = ", ".join(map(repr, distinct)) or "none"
    return (
        f"the training records have one value in column {task.label_column!r}, "
        f"{found}: there is nothing to learn; name data that has several "
        "(data.train, data.train_examples)"
    )


def entropy(labels: Int[np.ndarray, " N"]) -> float:
    """The loss of the best guess that does not look at the text, in nats."""
    shares = np.bincount(labels) / len(labels)
    return float(-np.sum(shares[shares > 0] * np.log(shares[shares > 0])))


def label_floor(examples: Examples) -> float:
    return entropy(np.array([example.slot["labels"] for example in examples.encoded]))


# For a reader


def ranked(probabilities: dict[str, float]) -> list[tuple[str, float]]:
    """Names and probabilities, the likeliest first."""
    return sorted(probabilities.items(), key=lambda item: -item[1])


def gold_cell(prediction: dict[str, Any]) -> dict[str, str]:
    """The cell "gold" where the label is known."""
    return {"gold": str(prediction["gold"])} if "gold" in prediction else {}


def shown_text(record: Record, task: Task) -> str:
    """The question, or else the texts."""
    columns = task.question_columns or task.text_columns
    return " | ".join(record.fields[column] for column in columns)


def describe_slots(batch: Batch, row: int, target: Callable[[int], str]) -> list[str]:
    """A line for each labelled example in a row, with its `target(slot)`."""
    return [
        f"  example {index} -> {target(slot)}"
        for at, slot, index in slots(batch)
        if at == row and batch["weights"][row, slot]
    ]


def describe_labels(
    batch: Batch, examples: Examples, tokenizer: Tokenizer, row: int
) -> list[str]:
    def name(slot: int) -> str:
        return repr(examples.labels[batch["labels"][row, slot]])

    return describe_slots(batch, row, name)
