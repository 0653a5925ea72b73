"""A kind of task: how many words a text has, in units of some words."""

import numpy as np

from objectives.regression import regression
from settings import Setting
from tasks import scores
from tasks.encoding import joined, text_of
from tasks.record import HeadSpec, Kind

UNIT = Setting("task.unit", int, "Words that count as one.", ">=1")


def encode(split):
    shown, cuts = split.texts()
    encoded = []
    for record, (side,) in zip(split.records, shown, strict=True):
        count = 0.0
        if split.labelled:
            words = int(text_of(record, split.task.label_column))
            count = words / split.task.own[UNIT.name]
        slot = {"counts": np.float32(count), "weights": np.float32(split.labelled)}
        sequence = split.frame.around(side)
        places = {"readout_positions": split.frame.readouts([sequence])}
        encoded.append(joined([sequence], slot, places))
    return encoded, cuts


def predict(examples, records, found, task):
    unit = task.own[UNIT.name]
    return [{"words": float(found[index]) * unit} for index in range(len(records))]


def measure(predicted, labels, task):
    errors = [abs(row["words"] - float(row["gold"])) for row in predicted]
    return {"closeness": -sum(errors) / len(errors)}


def rows(task, labels, record, prediction):
    text = scores.shown_text(record, task)
    yield {"words": f"{prediction['words']:.1f}", "text": text}


KIND = Kind(
    columns={"text_columns": (1, 1)},
    labels=None,
    misfit=lambda *_: None,
    encode=encode,
    head=HeadSpec(reads="examples", num_outputs=lambda labels: 1),
    loss=lambda found, batch: regression(
        found[..., 0], batch["counts"], batch["weights"]
    ),
    found=lambda batch, found: scores.by_slot(batch, found[..., 0]),
    predict=predict,
    metrics=("closeness",),
    measure=measure,
    is_constant=lambda predicted: False,
    floor=lambda examples: float(np.var([x.slot["counts"] for x in examples.encoded])),
    rows=rows,
    widths=lambda label: {"words": 6},
    described=lambda batch, examples, tokenizer, row: scores.describe_slots(
        batch, row, lambda slot: f"{batch['counts'][row, slot]:g}"
    ),
    line=("texts",),
    command="count_words",
    help="how many words a text has",
    settings=(UNIT,),
    rules=(),
)
