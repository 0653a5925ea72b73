"""The files of a GLUE submission. (https://gluebenchmark.com/faq)"""

from collections.abc import Iterator

from errors import UserError
from tasks.predictions import Predicted

# GLUE's file for a task, and what stands in it. MNLI's other file is MNLI-mm.tsv.
FILES = {
    "cola": ("CoLA.tsv", ("0", "1")),
    "sst2": ("SST-2.tsv", ("0", "1")),
    "mrpc": ("MRPC.tsv", ("0", "1")),
    "qqp": ("QQP.tsv", ("0", "1")),
    "stsb": ("STS-B.tsv", ()),
    "mnli": ("MNLI-m.tsv", ("entailment", "neutral", "contradiction")),
    "qnli": ("QNLI.tsv", ("entailment", "not_entailment")),
    "rte": ("RTE.tsv", ("entailment", "not_entailment")),
    "wnli": ("WNLI.tsv", ("0", "1")),
}


def lines(name: str, labels: tuple[str, ...], predicted: Predicted) -> Iterator[str]:
    """Index and prediction, in the order of the index.

    That is the column "index" (GLUE's files) or "idx" (TFDS, which stores the records
    in another order), else the place from 0. Where GLUE wants 0 and 1, 1 is the last
    of two labels, the positive one (configs/finetune/glue.py). Similarities are cut to
    0 to 5.

    Args:
        name: of the task, a key of `FILES`.

    Raises:
        UserError: the labels are not GLUE's, or an index is no number.
    """
    _, written = FILES[name]
    is_named = {*labels} == {*written}
    if not is_named and (len(labels) != 2 or written != ("0", "1")):
        raise UserError(
            f"GLUE's {name} takes {' or '.join(written) or 'a number'}; the run has "
            f"the labels {', '.join(labels) or 'none'}: fine-tune with those of "
            f"configs/finetune/glue.py:{name}"
        )
    rows = {}
    for place, (record, prediction) in enumerate(predicted):
        if prediction.get("score" if name == "stsb" else "label") is None:
            raise UserError(
                f"{record.place} is blank: GLUE wants a prediction for every line; "
                "write a text there, or pass over such lines with --skip_blank"
            )
        column = next((c for c in ("index", "idx") if c in record.fields), None)
        index = str(place) if column is None else record.fields[column]
        if not index.isdecimal() or int(index) in rows:
            raise UserError(
                f"{record.place}: the {column} {index!r} is no number, or stands there "
                "twice: GLUE counts from 0"
            )
        if name == "stsb":
            value = f"{min(5.0, max(0.0, prediction['score'])):.3f}"
        else:
            label = prediction["label"]
            value = label if is_named else written[labels.index(label)]
        rows[int(index)] = value
    yield "index\tprediction"
    for index in sorted(rows):
        yield f"{index}\t{rows[index]}"
