"""Classification of a text, or of a pair of them (entailment, paraphrase).

The sequence is the text, or `first A between B last` of the two; the label is a name.
Source: Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.1.
"""

from collections.abc import Iterator
from typing import Any

from data.labelled import Record
from settings import Setting
from tasks import counts, scores
from tasks.encoding import Encoded, Split, Task, joined, label_of
from tasks.record import HeadSpec, Kind


def encode(split: Split) -> tuple[list[Encoded], list[str]]:
    shown, cuts = split.texts()
    encoded = []
    for record, sides in zip(split.records, shown, strict=True):
        sequences = [split.frame.around(*sides)]
        places = {"readout_positions": split.frame.readouts(sequences)}
        encoded.append(joined(sequences, split.label_slot(record), places))
    return encoded, cuts


def positive_label(task: Task, labels: tuple[str, ...]) -> str | None:
    """Whose F1 is measured: what `task.positive_label` names, or else the last of two
    in `task.labels`; None where neither says it."""
    if task.own["task.positive_label"]:
        return task.own["task.positive_label"]
    return labels[-1] if task.labels and len(labels) == 2 else None


def misfit(
    train: list[Record], task: Task, labels: tuple[str, ...], metric: str
) -> str | None:
    positive, names = positive_label(task, labels), ", ".join(map(repr, labels))
    if positive is not None and positive not in labels:
        return f"task.positive_label={positive!r} is none of the labels {names}"
    if metric == "f1" and positive is None:
        return (
            f"task.metric='f1' is of one label, and the data has {names}: name it, as "
            f"in --config.task.positive_label={labels[-1]}, or measure that of all, "
            "--config.task.metric=macro_f1"
        )
    return scores.only_one((label_of(record, task)[0] for record in train), task)


def measure(
    predicted: list[dict], labels: tuple[str, ...], task: Task
) -> dict[str, float]:
    """Accuracy; macro F1 over `labels`; Matthews; F1 of the positive label, if one is.

    The F1 is that of the positive label against all others.
    """
    from sklearn import metrics  # a second to import

    gold, found = scores.column(predicted, "gold"), scores.column(predicted, "label")
    values = {
        "accuracy": float(metrics.accuracy_score(gold, found)),
        "macro_f1": float(
            metrics.f1_score(
                gold, found, labels=labels, average="macro", zero_division=0
            )
        ),
        "matthews": float(metrics.matthews_corrcoef(gold, found)),
    }
    positive = positive_label(task, labels)
    if positive is not None:
        is_gold, is_found = ([x == positive for x in names] for names in (gold, found))
        values["f1"] = float(metrics.f1_score(is_gold, is_found, zero_division=0))
    return values


def rows(
    task: Task, labels: tuple[str, ...], record: Record, prediction: dict[str, Any]
) -> Iterator[dict[str, str]]:
    best, *others = scores.ranked(prediction["probabilities"])
    after = ", ".join(f"{name} {share:.3f}" for name, share in others[:2])
    yield {
        "label": best[0],
        "probability": f"{best[1]:.3f}",
        "next": after,
        **scores.gold_cell(prediction),
        "text": scores.shown_text(record, task),
    }


def loss(output: Any, batch: dict) -> tuple:
    """Of the scores [B, E, K] of labels."""
    from objectives.cross_entropy import weighted_cross_entropy

    return weighted_cross_entropy(output, batch["labels"], batch["weights"])


KIND = Kind(
    columns={"text_columns": (1, 2)},
    labels=label_of,
    misfit=misfit,
    encode=encode,
    head=HeadSpec(reads="examples", num_outputs=lambda labels: labels),
    loss=loss,
    found=scores.by_slot,
    predict=scores.predict_labels,
    metrics=("accuracy", "macro_f1", "f1", "matthews"),
    measure=measure,
    is_constant=lambda predicted: scores.all_same(scores.column(predicted, "label")),
    floor=scores.label_floor,
    lines=counts.of_classes,
    rows=rows,
    widths=lambda label: {"next": 2 * (label + 8)},
    described=scores.describe_labels,
    line=("texts",),
    command="classify",
    help="the label of a text or a pair",
    settings=(
        Setting(
            "task.positive_label",
            str,
            'classification: whose F1 is measured; "": the last of two task.labels.',
            older="",
        ),
    ),
    rules=(),
)
