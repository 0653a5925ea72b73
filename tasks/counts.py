"""Lines to beat: what those come to who only count words, with the same labels.

Each function takes the task, its labels, training records and those to be predicted,
and returns predictions of these by the name of the line.
"""

import statistics
import warnings
from collections.abc import Sequence
from typing import Any

from data.labelled import Record
from tasks.encoding import Task, answers_of, field, label_of

Labels = tuple[str, ...]
Lines = dict[str, list[dict[str, Any]]]
MOST_RECORDS = 10_000  # that a line is learnt from, evenly apart: a minute at most
WORD = r"\w+|[^\w\s]"
ONE_FOR_ALL, TF_IDF = "one label for all", "TF-IDF"


def of_classes(
    task: Task, labels: Labels, train: list[Record], test: list[Record]
) -> Lines:
    """The most frequent label; a linear classifier of TF-IDF of words."""
    vectorizer, known = tf_idf(), [label_of(record, task)[0] for record in train]
    model = classifier(vectorizer.fit_transform(texts(train, task.text_columns)), known)
    found = model.predict(vectorizer.transform(texts(test, task.text_columns)))
    named = {TF_IDF: [{"label": label} for label in found.tolist()]}
    return one_for_all(task, labels, train, test) | named


def one_for_all(
    task: Task, labels: Labels, train: list[Record], test: list[Record]
) -> Lines:
    label = statistics.mode(label_of(record, task)[0] for record in train)
    return {ONE_FOR_ALL: [{"label": label} for _ in test]}


def of_pairs(
    task: Task, labels: Labels, train: list[Record], test: list[Record]
) -> Lines:
    """The cosine of the TF-IDF vectors of both texts."""
    vectorizer = tf_idf().fit(texts(train, task.text_columns))
    one, other = (
        vectorizer.transform(texts(test, (column,))) for column in task.text_columns
    )
    return {TF_IDF: [{"score": score} for score in cosines(one, other)]}


def of_answers(
    task: Task, labels: Labels, train: list[Record], test: list[Record]
) -> Lines:
    """The answer that is nearest to the context, the question before it; by TF-IDF over
    what stands in a record."""
    nearest = []
    for record in test:
        (context,), (question,) = (
            texts([record], columns)
            for columns in (task.text_columns, task.question_columns)
        )
        answers = answers_of(record, task)
        vectorizer = tf_idf().fit([context, question, *answers])
        asked = vectorizer.transform([f"{question} {answer}" for answer in answers])
        scores = cosines(vectorizer.transform([context] * len(answers)), asked)
        nearest.append({"label": labels[scores.index(max(scores))]})
    return one_for_all(task, labels, train, test) | {TF_IDF: nearest}


def of_words(
    task: Task, labels: Labels, train: list[Record], test: list[Record]
) -> Lines:
    """A linear classifier of the single word."""
    from sklearn.feature_extraction import DictVectorizer

    (column,), vectorizer = task.text_columns, DictVectorizer()
    tagged = [
        (word, tag)
        for one in train
        for word, tag in zip(
            one.fields[column], one.fields[task.label_column], strict=True
        )
        if tag in labels
    ]
    words, tags = zip(*tagged, strict=True)
    inputs = vectorizer.fit_transform({"word": word.lower()} for word in words)
    model = classifier(inputs, tags)
    asked = ({"word": word.lower()} for one in test for word in one.fields[column])
    found = iter(model.predict(vectorizer.transform(asked)).tolist())
    return {
        "the word alone": [
            {"tags": [next(found) for _ in one.fields[column]]} for one in test
        ]
    }


def of_spans(
    task: Task, labels: Labels, train: list[Record], test: list[Record]
) -> Lines:
    (column,) = task.text_columns
    first = [" ".join(record.fields[column].split()[:10]) for record in test]
    return {"first ten words": [{"answer": words} for words in first]}


def thinned(train: list[Record]) -> list[Record]:
    """At most `MOST_RECORDS` of the records."""
    return train[:: -(-len(train) // MOST_RECORDS)]


def texts(records: list[Record], columns: tuple[str, ...]) -> list[str]:
    return [" ".join(field(record, column) for column in columns) for record in records]


def tf_idf() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, token_pattern=WORD)


def classifier(inputs: Any, labels: Sequence[str]) -> Any:
    """A linear one, fitted; of one label alone, that."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression

    if len({*labels}) < 2:
        return DummyClassifier().fit(inputs, labels)
    with warnings.catch_warnings():  # where it stops before the end it is near enough
        warnings.simplefilter("ignore")
        return LogisticRegression(C=10.0, max_iter=1000).fit(inputs, labels)


def cosines(one: Any, other: Any) -> list[float]:
    """Of rows of length 1."""
    return one.multiply(other).sum(axis=1).A1.tolist()
