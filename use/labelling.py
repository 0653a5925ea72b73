"""Doing the task that a run was fine-tuned for."""

import collections
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int64

from data import inputs
from data.labelled import Record
from data.tokenizers import count_pieces
from errors import UserError
from models import Model
from tasks import packing, predictions, splits
from tasks.encoding import Examples, Task, cut_report, make_frame
from use import measured
from use.measured import Measured
from use.run import Run


def predict(
    run: Run, records: Iterable[Record], task: Task | None = None
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Each record with its prediction, as finetune.py writes it, in order.

    Of a record without fields, a blank line, every value of it is None. Says on stderr
    which texts were cut, and in the end how many of all pieces are unknown.

    Args:
        task: the run's own, or as the records have it (`lines.line_task`).

    Raises:
        UserError: see `splits.encode`.
    """
    task, kind, data, shape = task or run.task, run.kind, run.config.data, None
    unknown = total = 0
    for given in inputs.in_chunks(records):
        chunk = [record for record in given if record.fields]
        if not chunk:
            yield from ((record, {"place": record.place}) for record in given)
            continue
        examples = encode_chunk(run, chunk, task, labelled=False)
        if examples.cuts:
            print(cut_report(examples, data.max_length), file=sys.stderr)
        tokens = np.concatenate([x.arrays["tokens"] for x in examples.encoded])
        found_there = count_pieces(run.tokenizer, tokens)
        unknown, total = unknown + found_there[0], total + found_there[1]
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
            read = run.reads(batch)
            read = {name: read[name] for name in run.model.inputs if name in read}
            scores = task_scores(run.model, run.params, read)
            found |= dict(kind.found(batch, np.asarray(scores)))
        predicted = predictions.predict(kind, examples, chunk, found, task)
        blank, rest = dict.fromkeys(predicted[0]), iter(predicted)
        for record in given:
            prediction = next(rest) if record.fields else {**blank}
            if not record.fields:
                prediction["place"] = record.place
            elif record.fields.get(task.label_column):
                prediction["gold"] = record.fields[task.label_column]
            yield record, prediction
    run.tell_unknown(unknown, total)


def measure(run: Run, records: list[Record]) -> dict[str, Measured]:
    """The metrics of the run's task over records with labels.

    Raises:
        UserError: a column that is missing, or a label that the run does not know.
    """
    encode_chunk(run, records, run.task, labelled=True)  # before any is predicted
    found = [prediction for _, prediction in predict(run, records)]

    def values(chosen: Int64[np.ndarray, " N"]) -> dict[str, float]:
        return run.kind.measure([found[i] for i in chosen], run.labels, run.task)

    return measured.bootstrap(values, len(found))


def gold_report(
    run: Run, predicted: Sequence[tuple[Record, dict[str, Any]]], task: Task
) -> str:
    """The metrics of the task over predictions with "gold", in words.

    Names the labels that the run does not know, whose records have no part in it.
    """
    kind, known, unknown = run.kind, [], collections.Counter()
    try:
        for record, prediction in predicted:
            labels = {*kind.labels(record, task)} if kind.labels else set()
            unknown.update(labels - {*run.labels})
            if labels <= {*run.labels}:
                known.append((record, prediction))
        values = {}
        if known:
            encode_chunk(run, [record for record, _ in known], task, labelled=True)
            values = kind.measure([found for _, found in known], run.labels, task)
    except UserError as error:  # a label that cannot be read
        return f"no score: {error}"
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    report = f"{len(known)} records with labels: {shown or 'no score'}"
    if unknown:
        counts = ", ".join(f"{name!r} ({count})" for name, count in unknown.items())
        report += (
            f"\nlabels that the run does not know, in {len(predicted) - len(known)} "
            f"records that were left out: {counts}; it has "
            f"{', '.join(map(repr, run.labels))}"
        )
    return report


def encode_chunk(
    run: Run, records: list[Record], task: Task, *, labelled: bool
) -> Examples:
    """See `splits.encode`."""
    return splits.encode(
        run.kind,
        records,
        task,
        run.tokenizer,
        make_frame(run.tokenizer, run.config.model),
        labels=run.labels,
        labelled=labelled,
        max_length=run.config.data.max_length,
    )


@partial(jax.jit, static_argnames="model")
def task_scores(
    model: Model, params: Any, batch: dict[str, Array]
) -> Float[Array, "..."]:
    return model.apply(params, batch)["scores"]
