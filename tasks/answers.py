"""Windows over long contexts, and answers out of them.

As BERT's run_squad.py does it: a context that does not fit is read through windows that
overlap; an answer counts only from the window in which its first piece has the most
context; "no answer" scores what one position gets: [CLS], or the last one of a model
that sees left only, whose first position knows nothing of question and context.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Window:
    """The part of a context that one sequence shows.

    Attributes:
        record: index of the question in the split.
        first: position in the sequence of the window's first context piece.
        null: the position that stands for "no answer".
        offsets: characters of the context where each piece begins and ends.
        is_max_context: whether no other window gives the piece more context.
    """

    record: int
    first: int
    null: int
    offsets: Int[np.ndarray, "W 2"]
    is_max_context: Bool[np.ndarray, " W"]


@dataclass(frozen=True)
class Answer:
    """A piece of the context as it is written there; begin and end are characters."""

    text: str
    begin: int
    end: int
    score: float  # start logit + end logit
    probability: float  # among the n best and "no answer"


@dataclass(frozen=True)
class Prediction:
    """The best answers to a question, best first, beside "no answer".

    Attributes:
        answers: distinct texts; empty only if the context has nothing to answer with.
        null_score: the lowest score of "no answer" over the windows.
        null_margin: null_score - score of the best answer; the larger, the more likely
            is the question impossible. Thresholds are compared with it.
        null_probability: what the answers' probabilities leave over.
    """

    answers: list[Answer]
    null_score: float
    null_margin: float
    null_probability: float

    def text(self, null_threshold: float | None) -> str:
        """The answer; "" if `null_margin` is over the threshold (None: never)."""
        if not self.answers:
            return ""
        if null_threshold is not None and self.null_margin > null_threshold:
            return ""
        return self.answers[0].text


def window_spans(num_pieces: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first, end) of windows of at most `room` pieces, each `stride` further on.

    The last one reaches the end. A stride over `room` would skip pieces and counts as
    `room`.
    """
    spans = []
    first = 0
    while True:
        end = min(first + room, num_pieces)
        spans.append((first, end))
        if end == num_pieces:
            return spans
        first += min(stride, room)


def max_context(spans: list[tuple[int, int]]) -> list[Bool[np.ndarray, " _"]]:
    """For each window, the pieces that have the most context in it.

    A piece's score in a window is the smaller number of pieces to its left and right,
    plus 0.01 times the window's length; ties go to the earlier window.
    """
    scores = np.full((len(spans), spans[-1][1]), -1.0)
    for row, (first, end) in zip(scores, spans, strict=True):
        place = np.arange(end - first)
        row[first:end] = np.minimum(place, place[::-1]) + 0.01 * (end - first)
    best = np.argmax(scores, axis=0)
    return [best[first:end] == w for w, (first, end) in enumerate(spans)]


def without_spaces(
    text: str, offsets: Int[np.ndarray, "W 2"]
) -> Int[np.ndarray, "W 2"]:
    """Offsets less the white space at the ends, which pieces such as "Ġa" span."""
    trimmed = offsets.copy()
    for span in trimmed:
        begin, end = span.tolist()
        piece = text[begin:end]
        span[0] = begin + len(piece) - len(piece.lstrip())
        span[1] = max(span[0], begin + len(piece.rstrip()))
    return trimmed


def answer_pieces(
    offsets: Int[np.ndarray, "W 2"], begin: int, end: int
) -> tuple[int, int] | None:
    """First and last piece that share a character with [begin, end); None: no piece."""
    (inside,) = np.nonzero((offsets[:, 1] > begin) & (offsets[:, 0] < end))
    inside = inside[offsets[inside, 0] < offsets[inside, 1]]
    return (int(inside[0]), int(inside[-1])) if inside.size else None


def best_answers(
    context: str,
    windows: list[Window],
    start_scores: list[Float[np.ndarray, " _"]],
    end_scores: list[Float[np.ndarray, " _"]],
    *,
    n_best: int,
    max_answer_pieces: int,
) -> Prediction:
    """The answers to one question out of all its windows.

    Unlike run_squad.py, which combines the 20 best starts with the 20 best ends, every
    span is considered, so a good answer is not lost to starts that have no end.

    Args:
        context: the original text; answers are cut out of it.
        windows: those of the question.
        start_scores, end_scores: for each window the logits at all positions of its
            sequence, from [CLS] or start on.
        n_best: how many distinct answers to return at most, >= 1 (the paper's 20).
        max_answer_pieces: the longest answer, in pieces (the paper's 30).
    """
    assert n_best >= 1 and max_answer_pieces >= 1, (n_best, max_answer_pieces)
    parts = [
        _candidates(window, starts, ends, max_answer_pieces)
        for window, starts, ends in zip(windows, start_scores, end_scores, strict=True)
    ]
    scores, begins, ends = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    best: dict[str, tuple[float, int, int]] = {}
    for index in np.argsort(-scores, kind="stable").tolist():
        begin, end = int(begins[index]), int(ends[index])
        text = context[begin:end]
        if text and text not in best:
            best[text] = float(scores[index]), begin, end
        if len(best) == n_best:
            break
    null_score = min(
        float(starts[window.null]) + float(ends[window.null])
        for window, starts, ends in zip(windows, start_scores, end_scores, strict=True)
    )
    scores = np.array([null_score, *(score for score, _, _ in best.values())])
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    answers = [
        Answer(text, begin, end, score, float(probability))
        for (text, (score, begin, end)), probability in zip(
            best.items(), probabilities[1:], strict=True
        )
    ]
    margin = null_score - answers[0].score if answers else float("inf")
    return Prediction(answers, null_score, margin, float(probabilities[0]))


def _candidates(
    window: Window,
    starts: Float[np.ndarray, " N"],
    ends: Float[np.ndarray, " N"],
    max_answer_pieces: int,
) -> tuple[Float[np.ndarray, " S"], Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """Score, begin and end, in characters, of every span of a window."""
    size = len(window.offsets)
    starts, ends = (
        scores[window.first : window.first + size].astype(np.float64)
        for scores in (starts, ends)
    )
    first = np.flatnonzero(window.is_max_context)[:, None]
    last = first + np.arange(max_answer_pieces)
    first, last = (pieces[last < size] for pieces in np.broadcast_arrays(first, last))
    return (
        starts[first] + ends[last],
        window.offsets[first, 0],
        window.offsets[last, 1],
    )
