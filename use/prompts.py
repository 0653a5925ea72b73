"""Tasks without training: which label's words are likeliest in a text.

A spec is a JSON object:

    templates   texts with {COLUMN} for a field of the record, {COLUMN.0} for the first
                item of one that has a list, {label} for the label's words, and [[ ]]
                around what counts; without these all of it does. Of several templates
                the probabilities of the labels are averaged
    labels      label -> its words, in which {COLUMN} may stand, too
    threshold   in place of labels: the label of a text below and of one above the
                threshold that is best on the examples
    per         "token": the mean of what counts; "text", if it is not there: the sum
    label_column, separator (between a text and the examples shown before it)
                "label" and an empty line, if they are not there
    about       a remark
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from data import records
from data.labelled import Record
from errors import UserError
from tasks.encoding import list_of, text_of
from tasks.scores import shares
from use import measured, scoring
from use.measured import Measured
from use.run import Run
from use.scoring import WAYS, Counted

PART = re.compile(r"\[\[|\]\]|\{\w+(?:\.\d+)?\}")
FIELD = re.compile(r"\{(\w+)(?:\.(\d+))?\}")
PER = ("text", "token")
KEYS = ("templates", "labels", "threshold", "per", "label_column", "separator", "about")


class Spec(NamedTuple):
    """A task; see the head of this file.

    Attributes:
        labels: words by label; of a threshold "" for the two.
    """

    templates: tuple[str, ...]
    labels: dict[str, str]
    is_threshold: bool
    per: str
    label_column: str
    separator: str


class Prompt(NamedTuple):
    """A text, and the characters of it that count."""

    text: str
    begin: int
    end: int
    place: str


def read_spec(path: str) -> Spec:
    """
    Raises:
        UserError: no such file, or not a spec: what is wrong with it.
    """
    if not Path(path).is_file():
        raise UserError(f"--spec={path}: no such file; configs/score/ has some")
    given = records.parsed(Path(path).read_text(encoding="utf-8"), path)

    def check(is_right: bool, what: str) -> None:
        if not is_right:
            raise UserError(f"{path}: {what}")

    check(isinstance(given, dict), "not a JSON object with templates and labels")
    unknown = sorted(given.keys() - {*KEYS})
    check(not unknown, f"unknown key(s) {', '.join(unknown)}: known: {', '.join(KEYS)}")
    check(
        "templates" in given and ("labels" in given) != ("threshold" in given),
        "it needs templates, and labels or a threshold",
    )
    spec = {"per": "text", "label_column": "label", "separator": "\n\n"} | given
    templates, is_threshold = spec["templates"], "threshold" in spec
    check(_is_texts(templates) and bool(templates), "templates must be a list of texts")
    check(spec["per"] in PER, f"per={spec['per']!r} must be one of {', '.join(PER)}")
    if is_threshold:
        pair = spec["threshold"]
        check(_is_texts(pair) and len(pair) == 2, "threshold must be two labels")
        labels = dict.fromkeys(pair, "")
    else:
        labels = spec["labels"]
        check(
            isinstance(labels, dict) and _is_texts([*labels.values()]),
            "labels must be an object: label -> words",
        )
        check(len(labels) > 1, "it needs at least two labels")
    for template in templates:
        marks = [part for part in PART.findall(template) if not part.startswith("{")]
        check(
            marks in ([], ["[[", "]]"]),
            f"the template {template!r} may have one [[ and, after it, one ]]",
        )
        check(
            ("{label}" in template) != is_threshold,
            f"the template {template!r} must have {{label}} where there are labels, "
            "and none with a threshold",
        )
    for name in ("label_column", "separator"):
        check(isinstance(spec[name], str), f"{name} must be text")
    return Spec(
        (*templates,),
        labels,
        is_threshold,
        spec["per"],
        spec["label_column"],
        spec["separator"],
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def render(template: str, words: str, record: Record) -> Prompt:
    """The template with a label's words and a record's fields."""

    def fill(text: str) -> str:
        return FIELD.sub(lambda found: value_of(record, found[1], found[2]), text)

    text, begin, end = "", 0, None
    for part in re.split(f"({PART.pattern})", template):
        if part == "[[":
            begin = len(text)
        elif part == "]]":
            end = len(text)
        else:
            text += fill(words) if part == "{label}" else fill(part)
    return Prompt(text, begin, len(text) if end is None else end, record.place)


def value_of(record: Record, column: str, item: str | None) -> str:
    """The text of a field, or the item of that number, from 0 on, of its list."""
    if item is None:
        return text_of(record, column)
    items = list_of(record, column, "a list of texts")
    if int(item) >= len(items):
        raise UserError(
            f"{record.place}: the column {column!r} has {len(items)} items, so none "
            f"for {{{column}.{item}}}: correct the record or the spec"
        )
    return items[int(item)]


def after(prompt: Prompt, shown: Sequence[str], separator: str) -> Prompt:
    """The prompt with texts before it."""
    head = "".join(text + separator for text in shown)
    shift = len(head)
    return prompt._replace(
        text=head + prompt.text, begin=prompt.begin + shift, end=prompt.end + shift
    )


def score_task(
    run: Run,
    spec: Spec,
    rows: Sequence[Record],
    way: str,
    *,
    examples: Sequence[Record] = (),
    shots: int = 0,
    seed: int = 0,
    within_word: bool = False,
) -> dict[str, Measured]:
    """Metrics of the labels that the run finds likeliest, and "majority", the share of
    the most frequent label.

    Args:
        examples: shown before a record, `shots` of them drawn for each by the seed, and
            those that a threshold is chosen on.

    Raises:
        UserError: a column or label that is not there; too few examples; what counts is
            longer than the model.
    """
    if shots and spec.is_threshold:
        raise UserError("--shots goes with labels, and this spec has a threshold")
    if examples and not shots and not spec.is_threshold:
        raise UserError(
            "--examples is for --shots, or for a spec with a threshold: remove it, or "
            "say how many are shown, as in --shots=4"
        )
    if shots > len(examples):
        raise UserError(
            f"--shots={shots}, but --examples has {len(examples)} records: name a file "
            "with more, or lower it"
        )
    gold = np.array([label_of(spec, record) for record in rows])
    if spec.is_threshold:
        if not examples:
            raise UserError(
                "--examples is missing: this spec's threshold is chosen on them"
            )
        known = np.array([label_of(spec, record) for record in examples])
        values = template_means(run, spec, [*examples, *rows], way, within_word)
        cut = best_threshold(values[: len(examples)], known == 1)
        found = (values[len(examples) :] > cut).astype(int)
    else:
        found = likeliest(run, spec, rows, way, examples, shots, seed, within_word)
    return metrics(gold, found)


def label_of(spec: Spec, record: Record) -> int:
    """The number of a record's label."""
    label, names = text_of(record, spec.label_column).strip(), [*spec.labels]
    if label not in names:
        raise UserError(
            f"{record.place}: the label {label!r} is none of the spec's "
            f"({', '.join(map(repr, names))}): correct it, or add it there"
        )
    return names.index(label)


def likeliest(
    run: Run,
    spec: Spec,
    rows: Sequence[Record],
    way: str,
    examples: Sequence[Record],
    shots: int,
    seed: int,
    within_word: bool,
) -> Int64[np.ndarray, " N"]:
    """The number of the likeliest label of each record."""
    words = [*spec.labels.values()]
    prompts = []
    for number, record in enumerate(rows):
        draw = np.random.default_rng([seed, number])
        chosen = draw.choice(len(examples), shots, replace=False) if shots else []
        for template in spec.templates:
            shown = [
                render(template, words[label_of(spec, examples[i])], examples[i]).text
                for i in chosen
            ]
            for label in words:
                prompt = render(template, label, record)
                prompts.append(after(prompt, shown, spec.separator))
    scores = prompt_scores(run, prompts, way, spec.per, within_word)
    by_label = scores.reshape(len(rows), len(spec.templates), len(words))
    return shares(by_label).mean(axis=1).argmax(axis=1)


def template_means(
    run: Run, spec: Spec, rows: Sequence[Record], way: str, within_word: bool
) -> Float64[np.ndarray, " N"]:
    """The score of each record's text, the mean over the templates."""
    prompts = [render(template, "", row) for row in rows for template in spec.templates]
    scores = prompt_scores(run, prompts, way, spec.per, within_word)
    return scores.reshape(len(rows), -1).mean(axis=1)


def best_threshold(values: Float64[np.ndarray, " N"], is_above: np.ndarray) -> float:
    """Between the values that it parts with the fewest mistakes, the lowest of such."""
    order = np.argsort(values, kind="stable")
    ordered, above = values[order], is_above[order]
    # Mistakes of a threshold below value i: those of the other kind on either side.
    wrong = np.concatenate([[0], np.cumsum(above)]) + np.append(
        np.cumsum(~above[::-1])[::-1], 0
    )
    edges = np.concatenate([[-np.inf], (ordered[1:] + ordered[:-1]) / 2, [np.inf]])
    parts = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    return float(edges[np.where(parts, wrong, len(values) + 1).argmin()])


def prompt_scores(
    run: Run, prompts: Sequence[Prompt], way: str, per: str, within_word: bool
) -> Float64[np.ndarray, " N"]:
    """The log-probability of what counts of each prompt, or its mean a token."""
    texts = encode(run, prompts, way)
    scores = scoring.log_probabilities(run, way, texts, within_word)
    if per == "token":
        return scores.sums / np.maximum(scores.counts, 1)
    return scores.sums


def encode(run: Run, prompts: Sequence[Prompt], way: str) -> list[Counted]:
    """The tokens of prompts; what is too long for the model loses its beginning.

    Raises:
        UserError: what counts has no token, or alone is too long.
    """
    before, after = WAYS[way].frame(run)
    room = scoring.longest(run, way) - len(before) - len(after)
    found, cuts = [], []
    encoded = run.tokenizer.encode_batch_offsets([prompt.text for prompt in prompts])
    for prompt, (pieces, spans) in zip(prompts, encoded, strict=True):
        begins, ends = spans.T
        # A piece that spans nothing is a part of a character.
        is_counted = (begins < prompt.end) & (
            (ends > prompt.begin) | (begins >= prompt.begin)
        )
        (places,) = np.nonzero(is_counted)
        if not len(places):
            counted = prompt.text[prompt.begin : prompt.end]
            raise UserError(f"{prompt.place}: no piece of {counted!r} could count")
        first, last = int(places[0]), int(places[-1]) + 1
        end = len(pieces) if WAYS[way].sees_both else last
        begin = max(0, end - room)
        if begin > first:
            raise UserError(
                f"{prompt.place}: what counts reaches over {end - first} tokens, but "
                f"the model has room for {room}: shorten the template or the text"
            )
        if begin:
            cuts.append(prompt.place)
        tokens = np.concatenate([before, pieces[begin:end], after]).astype(np.int32)
        shift = len(before) - begin
        found.append(Counted(tokens, first + shift, last + shift))
    if cuts:
        print(
            f"{len(cuts)} of {len(prompts)} prompts are longer than the model's {room} "
            f"tokens and lost their beginning: {cuts[0]}",
            file=sys.stderr,
        )
    return found


def metrics(
    gold: Int64[np.ndarray, " N"], found: Int64[np.ndarray, " N"]
) -> dict[str, Measured]:
    """Accuracy, Matthews' correlation, and the share of the most frequent label."""
    frequent = np.bincount(gold).argmax()
    return {
        "accuracy": measured.mean((gold == found).astype(np.float64)),
        **measured.bootstrap(
            lambda chosen: {"matthews": matthews(gold[chosen], found[chosen])},
            len(gold),
        ),
        "majority": measured.mean((gold == frequent).astype(np.float64)),
    }


def matthews(gold: Int64[np.ndarray, " N"], found: Int64[np.ndarray, " N"]) -> float:
    """The correlation of two labellings (Gorodkin 2004, R_K); 0 where one is constant.

    sklearn's takes milliseconds, which a bootstrap has not.
    """
    size = len(gold)
    most = max(gold.max(), found.max()) + 1
    golden, given = (np.bincount(labels, minlength=most) for labels in (gold, found))
    together = np.sum(gold == found) * size - golden @ given
    apart = (size**2 - golden @ golden) * (size**2 - given @ given)
    return float(together / np.sqrt(apart)) if apart else 0.0
