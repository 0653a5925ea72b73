"""Extractive question answering: the piece of a context that answers a question.

The sequence is the question and a window of the context; each window is an example of
its own, and the context is never cut (see `answers`). The label is a dict of the lists
"text" and "answer_start", empty where there is no answer, which the token that is read
out stands for: [CLS], or the last one of a model that sees left only.
Source: Devlin et al. 2019, sections 4.2 and 4.3; the release's run_squad.py. Exact
match and F1 are those of SQuAD's evaluate-v1.1.py, and of evaluate-v2.0.py for
questions without an answer.
"""

import collections
import math
import re
import string
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data.labelled import Record
from data.tokenizers import Tokenizer
from errors import UserError
from settings import Setting
from tasks import answers, counts, scores
from tasks.encoding import (
    Encoded,
    Examples,
    Split,
    Task,
    check_pieces,
    field,
    joined,
    text_of,
)
from tasks.record import HeadSpec, Kind
from tasks.scores import Batch

N_BEST, MAX_ANSWER_PIECES = 20, 30  # run_squad.py


def encode(split: Split) -> tuple[list[Encoded], list[str]]:
    task, frame = split.task, split.frame
    stride = task.own["data.window_stride"]
    longest = task.own["data.max_question_length"]
    reads_out = task.own["task.null_position"] == "readout"
    questions = split.pieces(task.question_columns)
    (context_column,) = task.text_columns
    texts = [text_of(record, context_column) for record in split.records]
    # Many questions share a context.
    distinct = list(dict.fromkeys(texts))
    found = split.tokenizer.encode_batch_offsets(distinct)
    contexts = {
        text: (context, answers.without_spaces(text, offsets))
        for text, (context, offsets) in zip(distinct, found, strict=True)
    }
    encoded, cuts, lost = [], [], []
    for index, (record, text) in enumerate(zip(split.records, texts, strict=True)):
        context, offsets = contexts[text]
        check_pieces(context, record, context_column)
        answer = answer_span(record, task, text, offsets) if split.labelled else None
        question = questions[index]
        if len(question) > longest:
            cuts.append(
                f"{record.place}: {len(question)} to {longest} pieces of question"
            )
            question = question[:longest]
        room = split.max_length - 3 - len(question)
        shown = answers.window_spans(len(context), room, stride)
        first = len(question) + 2
        holds = [
            answer is not None and begin <= answer[0] and answer[1] < end
            for begin, end in shown
        ]
        is_lost = answer is not None and not any(holds)
        if is_lost:
            lost.append(
                f"{record.place}: the answer, {answer[1] - answer[0] + 1} pieces, is "
                f"in no window of {room}, and the question is left out"
            )
        weight = np.float32(split.labelled and not is_lost)
        for (begin, end), is_max, has_answer in zip(
            shown, answers.max_context(shown), holds, strict=True
        ):
            sequence = frame.around(question, context[begin:end])
            null = int(frame.readouts([sequence])[0]) if reads_out else 0
            places = (null, null)
            if has_answer:
                places = (first + answer[0] - begin, first + answer[1] - begin)
            encoded.append(
                joined(
                    [sequence],
                    {"weights": weight},
                    {"starts": np.int32(places[0]), "ends": np.int32(places[1])},
                    answers.Window(index, first, null, offsets[begin:end], is_max),
                )
            )
    return encoded, lost + cuts


def answer_span(
    record: Record, task: Task, context: str, offsets: Int[np.ndarray, "W 2"]
) -> tuple[int, int] | None:
    """First and last piece of the first answer; None: there is no answer."""
    given, first = answers_of(record, task), None
    for text, start in zip(given["text"], given["answer_start"], strict=True):
        begin = int(start) if start.removeprefix("-").isdecimal() else -1
        there = context[begin : begin + len(text)] if begin >= 0 else ""
        if not text.strip() or there != text:
            raise UserError(
                f"{record.place}: the answer {text!r} does not stand at character "
                f"{start} of the context, which has {there!r} there; correct "
                "answer_start (characters, not bytes, from 0) or remove the question"
            )
        pieces = answers.answer_pieces(offsets, begin, begin + len(text))
        if pieces is None:
            raise UserError(
                f"{record.place}: the tokenizer has no piece for the answer {text!r}"
            )
        first = first or pieces
    return first


def answers_of(record: Record, task: Task) -> dict[str, list[str]]:
    given = field(record, task.label_column)
    if not isinstance(given, dict) or not {"text", "answer_start"} <= {*given}:
        raise UserError(
            f"{record.place}: the column {task.label_column!r} holds {given!r} where "
            '{"text": [...], "answer_start": [...]} is expected'
        )
    return given


def misfit(
    train: list[Record], task: Task, labels: tuple[str, ...], metric: str
) -> str | None:
    if any(answers_of(record, task)["text"] for record in train):
        return None
    return (
        f"none of the training questions has an answer in column {task.label_column!r}"
        ": there is nothing to learn; name data that has some (data.train, "
        "data.train_examples)"
    )


def windows_fit(config: Any) -> str | None:
    data = config.data
    room = data.max_length - 3 - data.max_question_length
    if room < 1:
        return (
            f"data.max_length={data.max_length} leaves no room for context beside "
            f"{data.max_question_length} pieces of question: raise it, or lower "
            "data.max_question_length"
        )
    if data.window_stride > room:
        return (
            f"data.window_stride={data.window_stride} is more than the {room} pieces "
            f"of context that data.max_length={data.max_length} has room for beside "
            f"{data.max_question_length} of question, so answers would be in no "
            f"window: lower it, to {max(1, room // 2)} or so"
        )
    return None


def loss(token_scores: Any, batch: dict) -> tuple:
    """Of scores [B, T, 2]: starts and ends, each among its example's own tokens."""
    from objectives.span import span, within_segments

    own = within_segments(token_scores, batch["segment_ids"], batch["starts"].shape[1])
    return span(own, batch["starts"], batch["ends"], batch["weights"])


def found(
    batch: Batch, token_scores: Float[np.ndarray, "B T 2"]
) -> Iterator[tuple[int, Float[np.ndarray, "N 2"]]]:
    """Start and end scores of each window's sequence."""
    for index, row, is_own in scores.own_tokens(batch):
        yield index, token_scores[row, is_own]


def predict(
    examples: Examples,
    records: list[Record],
    found: dict[int, Float[np.ndarray, "N 2"]],
    task: Task,
) -> list[dict[str, Any]]:
    """Answer ("" for none, only with `task.null_answers`), its probability and that of
    no answer."""
    threshold = 0.0 if task.own["task.null_answers"] else None
    windows: dict[int, list[int]] = {}
    for index, example in enumerate(examples.encoded):
        windows.setdefault(example.origin.record, []).append(index)
    predicted = []
    for number, record in enumerate(records):
        best = answers.best_answers(
            record.fields[task.text_columns[0]],
            [examples.encoded[i].origin for i in windows[number]],
            [found[i][:, 0] for i in windows[number]],
            [found[i][:, 1] for i in windows[number]],
            n_best=N_BEST,
            max_answer_pieces=MAX_ANSWER_PIECES,
        )
        predicted.append(
            {
                "answer": best.text(threshold),
                "probability": best.answers[0].probability if best.answers else 0.0,
                "null_probability": best.null_probability,
            }
        )
    return predicted


def measure(
    predicted: list[dict], labels: tuple[str, ...], task: Task
) -> dict[str, float]:
    """SQuAD's exact match and F1 in percent.

    Of several right answers the best counts; none means that "" is right.
    """
    exact, overlap = [], []
    for prediction in predicted:
        text, gold = prediction["answer"], prediction["gold"]["text"]
        right = [answer for answer in gold if normalize_answer(answer)] or [""]
        exact.append(max(float(same(text, answer)) for answer in right))
        overlap.append(max(token_f1(text, answer) for answer in right))
    count = len(exact)
    return {
        "exact_match": 100 * math.fsum(exact) / count,
        "f1": 100 * math.fsum(overlap) / count,
    }


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, articles and extra white space."""
    kept = "".join(mark for mark in text.lower() if mark not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def same(a: str, b: str) -> bool:
    return normalize_answer(a) == normalize_answer(b)


def token_f1(predicted: str, gold: str) -> float:
    """F1 of the bags of words; 1 or 0 where one of them has none."""
    a, b = normalize_answer(predicted).split(), normalize_answer(gold).split()
    if not a or not b:
        return float(a == b)
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def rows(
    task: Task, labels: tuple[str, ...], record: Record, prediction: dict[str, Any]
) -> Iterator[dict[str, str]]:
    gold = {}
    if "gold" in prediction:
        gold = {"gold": " / ".join(dict.fromkeys(prediction["gold"]["text"]))}
    yield {
        "answer": prediction["answer"],
        "probability": f"{prediction['probability']:.3f}",
        "no answer": f"{prediction['null_probability']:.3f}",
        **gold,
        "text": scores.shown_text(record, task),
    }


def described(
    batch: Batch, examples: Examples, tokenizer: Tokenizer, row: int
) -> list[str]:
    def answer(slot: int) -> str:
        start, end = (int(batch[name][row, slot]) for name in ("starts", "ends"))
        return repr(tokenizer.decode(batch["tokens"][row, start : end + 1]))

    return scores.describe_slots(batch, row, answer)


KIND = Kind(
    columns={"text_columns": (1, 1), "question_columns": (1, 1)},
    labels=None,
    misfit=misfit,
    encode=encode,
    head=HeadSpec(reads="tokens", num_outputs=lambda labels: 2, drops=False),
    loss=loss,
    found=found,
    predict=predict,
    metrics=("exact_match", "f1"),
    measure=measure,
    is_constant=lambda predicted: scores.all_same(scores.column(predicted, "answer")),
    floor=lambda examples: float(np.mean(np.log(examples.lengths))),
    lines=counts.of_spans,
    rows=rows,
    widths=lambda label: {"answer": 32, "no answer": 9, "gold": 32},
    described=described,
    line=("question", "context"),
    command="answer",
    help="the words of a context that answer",
    settings=(
        Setting("task.question_columns", tuple, "The question.", items="texts"),
        Setting("task.null_answers", bool, 'span: "" where no answer scores better.'),
        Setting(
            "task.null_position",
            str,
            "span: the token that stands for no answer.",
            choices=("readout", "first"),
            older="first",
        ),
        Setting(
            "data.max_question_length",
            int,
            "span: pieces of a question that are kept (BERT: 64).",
            ">=1",
        ),
        Setting(
            "data.window_stride",
            int,
            "span: pieces from window to window (BERT: 128).",
            ">=1",
        ),
    ),
    rules=(windows_fit,),
)
