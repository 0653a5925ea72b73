"""Which of the answers is right? A sequence for each, and a softmax over their scores.

A model that sees both sides reads `context`, `question answer` as A, B; one that sees
left only `context question`, `answer`. The label is the name of the right answer, such
as "0" or "B", and labels are in the order of the answers.
Source: Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.4.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from data.labelled import Record
from errors import UserError
from settings import Setting
from tasks import counts, scores
from tasks.encoding import (
    Encoded,
    Split,
    Task,
    answers_of,
    check_pieces,
    joined,
    label_of,
    word_prefix,
)
from tasks.record import HeadSpec, Kind


def encode(split: Split) -> tuple[list[Encoded], list[str]]:
    """All answers are shown whole; the context loses its end."""
    task, frame = split.task, split.frame
    contexts = split.pieces(task.text_columns)
    questions = [np.zeros(0, np.int32)] * len(contexts)
    before_answer = ""
    if task.question_columns:  # within a side words begin as within a text
        space = word_prefix(split.tokenizer)
        questions = split.pieces(
            task.question_columns, "" if frame.sees_both else space
        )
        before_answer = space if frame.sees_both else ""
    answers = answer_pieces(split, before_answer)
    room = split.max_length - 3
    encoded, cuts = [], []
    for record, context, question, choices in zip(
        split.records, contexts, questions, answers, strict=True
    ):
        left = room - len(question) - max(map(len, choices))
        if left < 1:
            raise UserError(
                f"{record.place}: the question and the longest answer have "
                f"{room - left} pieces and leave no room for context in "
                f"max_length={split.max_length}; shorten them, or raise max_length to "
                f"more than {split.max_length - left}"
            )
        sequences = []
        for answer in choices:
            kept = context[: room - len(question) - len(answer)]
            if frame.sees_both:
                sides = kept, np.concatenate([question, answer])
            else:
                sides = np.concatenate([kept, question]), answer
            sequences.append(frame.around(*sides))
        if left < len(context):
            cuts.append(f"{record.place}: {len(context)} to {left} pieces of context")
        places = {"readout_positions": frame.readouts(sequences)}
        encoded.append(joined(sequences, split.label_slot(record), places))
    return encoded, cuts


def answer_pieces(split: Split, prefix: str) -> list[list[Int[np.ndarray, " _"]]]:
    """For each record the pieces of its answers, as many as there are labels."""
    texts: list[str] = []
    for record in split.records:
        answers = answers_of(record, split.task)
        if len(answers) != len(split.labels):
            raise UserError(
                f"{record.place}: {len(answers)} answers, but the labels "
                f"{', '.join(map(repr, split.labels))} stand for {len(split.labels)}; "
                "every record must have the same number (where the training data "
                "never has some answer right, list all in task.labels)"
            )
        texts += (prefix + answer for answer in answers)
    pieces = split.tokenizer.encode_batch(texts)
    count = len(split.labels)
    grouped = [pieces[i : i + count] for i in range(0, len(pieces), count)]
    for record, choices in zip(split.records, grouped, strict=True):
        for ids in choices:
            check_pieces(ids, record, " or ".join(split.task.answer_columns))
    return grouped


def measure(
    predicted: list[dict], labels: tuple[str, ...], task: Task
) -> dict[str, float]:
    from sklearn import metrics  # a second to import

    gold, found = scores.column(predicted, "gold"), scores.column(predicted, "label")
    return {"accuracy": float(metrics.accuracy_score(gold, found))}


def rows(
    task: Task, labels: tuple[str, ...], record: Record, prediction: dict[str, Any]
) -> Iterator[dict[str, str]]:
    best, share = scores.ranked(prediction["probabilities"])[0]
    yield {
        "label": best,
        "probability": f"{share:.3f}",
        "answer": answers_of(record, task)[labels.index(best)],
        **scores.gold_cell(prediction),
        "text": scores.shown_text(record, task),
    }


def loss(output: Any, batch: dict) -> tuple:
    """Of the scores [B, E, R, 1] of answers."""
    from objectives.cross_entropy import weighted_cross_entropy

    return weighted_cross_entropy(output[..., 0], batch["labels"], batch["weights"])


KIND = Kind(
    columns={
        "text_columns": (1, 99),
        "question_columns": (0, 99),
        "answer_columns": (1, 99),
    },
    labels=label_of,
    misfit=lambda *_: None,  # the right one may well be always the first
    encode=encode,
    head=HeadSpec(reads="readouts", num_outputs=lambda labels: 1),
    loss=loss,
    found=lambda batch, found: scores.by_slot(batch, found[..., 0]),
    predict=scores.predict_labels,
    metrics=("accuracy",),
    measure=measure,
    is_constant=lambda predicted: scores.all_same(scores.column(predicted, "label")),
    floor=scores.label_floor,
    lines=counts.of_answers,
    rows=rows,
    widths=lambda label: {"answer": 32},
    described=scores.describe_labels,
    line=("context", "question", "answers"),
    command="choose",
    help="which of the answers is right",
    settings=(
        Setting(
            "task.question_columns",
            tuple,
            "What goes before the answers, if anything.",
            items="texts",
        ),
        Setting(
            "task.answer_columns",
            tuple,
            "One column with a list of answers, or a column for each.",
            items="texts",
        ),
    ),
    rules=(),
)
