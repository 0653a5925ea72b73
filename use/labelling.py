"""Doing the task that a run was fine-tuned for."""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from data import inputs
from data.labelled import Record
from models import Model
from tasks import packing, predictions, splits
from tasks.encoding import Task, cut_report
from use.run import Run


def predict(
    run: Run, records: Iterable[Record], task: Task | None = None
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Each record with its prediction, as finetune.py writes it, in order.

    Says on stderr what was cut.

    Args:
        task: the run's own, or as the records have it (`lines.line_task`).

    Raises:
        UserError: see `splits.encode`.
    """
    task, kind, data, shape = task or run.task, run.kind, run.config.data, None
    for chunk in inputs.in_chunks(records):
        examples = splits.encode(
            kind,
            chunk,
            task,
            run.tokenizer,
            run.family,
            labels=run.labels,
            labelled=False,
            max_length=data.max_length,
        )
        if examples.cuts:
            print(cut_report(examples, data.max_length), file=sys.stderr)
        longest = int(examples.lengths.max())
        if shape is None or longest > shape.length:  # else what is compiled serves
            shape = packing.row_shape(
                examples,
                examples_per_batch=min(data.batch_size, len(examples.encoded)),
                longest_row=max(2 * data.max_length, longest),
                packed=data.packed,
                read_once=True,
            )
        found: dict[int, Any] = {}
        for batch in packing.evaluation_batches(examples, shape):
            read = {name: batch[name] for name in run.model.inputs if name in batch}
            scores = task_scores(run.model, run.params, read)
            found |= dict(kind.found(batch, np.asarray(scores)))
        predicted = predictions.predict(kind, examples, chunk, found, task)
        for record, prediction in zip(chunk, predicted, strict=True):
            if record.fields.get(task.label_column):
                prediction["gold"] = record.fields[task.label_column]
            yield record, prediction


@partial(jax.jit, static_argnames="model")
def task_scores(
    model: Model, params: Any, batch: dict[str, Array]
) -> Float[Array, "..."]:
    return model.apply(params, batch)["scores"]
