"""The kinds of task: losses, metrics, runs that failed, a kind in one file."""

import ast
import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from task_examples import (
    CHOICE,
    PAIR,
    SIMILARITY,
    SPAN,
    TAGGING,
    TOPIC,
    encode,
    good,
    letters,
    records,
)

import tasks
from configs import gpt_mini
from configs.finetune import OF_KIND, squad, topic
from models import heads
from objectives.span import MASKED_SCORE, within_segments
from tasks import KINDS, counts, packing, predictions, scores, splits
from tasks.encoding import joined
from tests.task_examples import head_of
from training import parallel
from training.step import term_means

ROOT = Path(__file__).parents[1]
SIZES = {"num_layers": 1, "precision": "float32"}
FIELDS = {
    "bert": topic.get_config("tiny").model.to_dict() | SIZES,
    "gpt": gpt_mini.get_config("tiny").model.to_dict() | SIZES,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters(tmp_path_factory.mktemp("tokenizer"))


# Lines to beat


@pytest.mark.parametrize(
    ("task", "train", "test", "expected"),
    [
        (
            TOPIC,
            [("good film", "x"), ("bad film", "y"), ("so bad", "y"), ("good", "x ")],
            ["good", "bad , bad"],
            {"one label for all": ["x", "x"], "TF-IDF": ["x", "y"]},
        ),
        (TOPIC, [("a", "x")], ["b"], {"one label for all": ["x"], "TF-IDF": ["x"]}),
        (
            TAGGING,
            [(["a", "B"], ["O", "T"]), (["b", "c"], ["T", "-100"])],
            [["b", "a", "A"]],
            {"the word alone": [["T", "O", "O"]]},
        ),
        (
            CHOICE,
            [("a", "q", ["c", "d"], "1")],
            [("a d e", "q", ["c a", "d e"]), ("c c", "c", ["c", "x"])],
            {"one label for all": ["1", "1"], "TF-IDF": ["1", "0"]},
        ),
        (
            SPAN,
            [],
            ["a b c d e f g h i j k"],
            {"first ten words": ["a b c d e f g h i j"]},
        ),
    ],
)
def test_lines_to_beat_literal(task, train, test, expected):
    columns = (*task.text_columns, *task.question_columns, *task.answer_columns)

    def record(*values):
        return dict(zip((*columns, task.label_column), values, strict=False))

    kind, known = KINDS[task.kind], records(*(record(*values) for values in train))
    names = splits.label_names(kind, known, task)
    asked = records(*(record(*(v if isinstance(v, tuple) else (v,))) for v in test))
    names = ("0", "1") if task is CHOICE else names
    found = kind.lines(task, names, known, asked)
    (key,) = {*("label", "tags", "answer")} & {*next(iter(found.values()))[0]}
    assert {
        name: [one[key] for one in line] for name, line in found.items()
    } == expected


def test_the_line_of_similarity_is_a_cosine():
    train = records({"one": "a b", "two": "c", "score": "1"})
    asked = [{"one": "a b", "two": other} for other in ("a b", "a", "z")]
    (line,) = KINDS["similarity"].lines(SIMILARITY, (), train, records(*asked)).values()
    same, half, none = (one["score"] for one in line)
    assert same == pytest.approx(1) and none == 0 < half < 1
    assert len(counts.thinned(train * 25_001)) == 8334


# Losses


def model_of(kind, family, num_labels):
    spec = kind.head
    return heads.build(FIELDS[family], spec, num_labels=num_labels, head=head_of(0.1))


LABELS = {name: {"labels": ("0", "1")} for name in KINDS}
LABELS |= {"classification": {"labels": ("no", "yes")}, "tagging": {"labels": ("O",)}}


@pytest.mark.parametrize("family", FIELDS)
@pytest.mark.parametrize("task", [PAIR, SIMILARITY, CHOICE, TAGGING, SPAN])
def test_empty_rows_have_no_loss_and_no_gradient(tokenizer, family, task):
    """On top of 3 rows: as part of the batch, and as a micro-batch of their own."""
    kind, rows = KINDS[task.kind], records(*[good(task)] * 7)
    examples = encode(rows, task, tokenizer, family, **LABELS[task.kind])
    shape = packing.RowShape(3, 40, 3, True)
    batch = packing.evaluation_batches(examples, shape)[0]
    plain, filled = jax.device_put((batch, parallel.filled(batch, 6)))
    empty = {name: array[3:] for name, array in filled.items()}
    model = model_of(kind, family, 2)
    params = model.init(jax.random.key(0), plain)

    @jax.jit
    def loss_and_gradient(params, batch):
        def loss(params):
            terms = kind.loss(model.apply(params, batch, key)["scores"], batch)
            return terms[0], terms

        return jax.grad(loss, has_aux=True)(params)

    key = jax.random.key(1)
    gradient, terms = loss_and_gradient(params, plain)
    other, others = loss_and_gradient(params, filled)
    assert terms[1] > 0 and np.isfinite(terms[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), terms, others
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient,
        other,
    )
    nothing, none = loss_and_gradient(params, empty)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves((nothing, none)))
    means = term_means({task.kind: none})
    assert all(value == 0 for value in means.values())


def test_spans_see_their_own_segment():
    segment_ids = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
    token_scores = jnp.arange(24.0).reshape(1, 12, 2)
    own = within_segments(token_scores, segment_ids, 3)
    seen = np.asarray(own[0, :, :, 0]) > MASKED_SCORE / 2
    assert seen[0].tolist() == [True] * 5 + [False] * 7
    assert seen[1].tolist() == [False] * 5 + [True] * 4 + [False] * 3
    assert not seen[2].any()
    np.testing.assert_array_equal(own[0, 0, :5], token_scores[0, :5])


@pytest.mark.parametrize(
    ("family", "null_position", "distinct"),
    [("bert", "readout", 3), ("gpt", "readout", 3), ("gpt", "first", 1)],
)
def test_no_answer_can_be_told_from_the_text(
    tokenizer, family, null_position, distinct
):
    """Its score depends on question and context; a decoder's first token sees none."""
    parts = ("q", "a b c"), ("q", "d e f"), ("x", "a b c")
    rows = records(*({"question": q, "context": c} for q, c in parts))
    changes = {"labels": (), "labelled": False, "null_position": null_position}
    examples = encode(rows, SPAN, tokenizer, family, **changes)
    shape = packing.RowShape(3, 16, 1, False)
    (batch,) = packing.evaluation_batches(examples, shape)
    model = model_of(KINDS["span"], family, 0)
    placed = jax.device_put(batch)
    params = model.init(jax.random.key(0), placed)
    outputs = np.asarray(model.apply(params, placed)["scores"])
    nulls = {
        tuple(found[examples.encoded[index].origin.null].round(7).tolist())
        for index, found in KINDS["span"].found(batch, outputs)
    }
    assert len(nulls) == distinct


def test_a_slot_without_an_example_has_no_loss_and_no_gradient():
    batch = {
        "segment_ids": jnp.array([[1, 1, 1, 0]]),
        "starts": jnp.array([[0, 0]]),
        "ends": jnp.array([[2, 0]]),
        "weights": jnp.array([[1.0, 0.0]]),
    }
    starts = jnp.log(jnp.array([0.5, 0.25, 0.25, 9.0]))
    ends = jnp.log(jnp.array([0.1, 0.8, 0.1, 9.0]))
    found = jnp.stack([starts, ends], axis=-1)[None]
    loss, weight, metrics = KINDS["span"].loss(found, batch)
    assert float(loss) == pytest.approx((math.log(2) + math.log(10)) / 2, rel=1e-6)
    assert (float(weight), float(metrics["accuracy"])) == (1.0, 0.5)
    gradient = jax.grad(lambda x: KINDS["span"].loss(x, batch)[0])(found)
    assert np.isfinite(gradient).all() and (gradient[0, 3] == 0).all()


def test_the_loss_of_a_choice_is_over_its_answers():
    shares = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]]))[..., None]
    batch = {"labels": jnp.array([[1]]), "weights": jnp.array([[2.0]])}
    loss, weight, _ = KINDS["choice"].loss(shares, batch)
    assert float(loss) == pytest.approx(-2 * math.log(0.3), rel=1e-6)
    assert float(weight) == 2.0


def test_the_loss_of_a_similarity_is_squared():
    batch = {"scores": jnp.array([[3.0, 1.0]]), "weights": jnp.array([[1.0, 0.0]])}
    loss, weight, _ = KINDS["similarity"].loss(jnp.array([[[1.0], [9.0]]]), batch)
    assert (float(loss), float(weight)) == (4.0, 1.0)


# Metrics


def measured(kind, name, predicted, gold, labels=(), task=TOPIC):
    predictions = [{name: p, "gold": g} for p, g in zip(predicted, gold, strict=True)]
    return KINDS[kind].measure(predictions, labels, task)


def topic_of(positive="", listed=None):
    own = {"task.positive_label": positive}
    return dataclasses.replace(TOPIC, labels=listed, own=own)


def test_classification_metrics():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
    gold, predicted = list("yyyyynnnnn"), list("yyynnynnnn")
    task = topic_of(listed=("n", "y"))
    values = measured("classification", "label", predicted, gold, ("n", "y"), task)
    assert values["accuracy"] == pytest.approx(0.7)
    assert values["f1"] == pytest.approx(6 / 9)
    assert values["macro_f1"] == pytest.approx((6 / 9 + 8 / 11) / 2)
    expected = (3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6)
    assert values["matthews"] == pytest.approx(expected)
    for positive, listed, labels, f1 in (
        ("", None, ("n", "y"), None),  # nobody said which one
        ("n", None, ("n", "y"), 8 / 11),
        ("n", ("n", "y"), ("n", "y"), 8 / 11),
        ("", ("m", "n", "y"), ("m", "n", "y"), None),
        ("y", None, ("m", "n", "y"), 6 / 9),
    ):
        task = topic_of(positive, listed)
        values = measured("classification", "label", predicted, gold, labels, task)
        assert values.get("f1") == (None if f1 is None else pytest.approx(f1))
    assert measured("choice", "label", predicted, gold) == {"accuracy": 0.7}


def test_similarity_metrics():
    values = measured("similarity", "score", [1.0, 2.0, 4.0], ["1.0", "3", "2.0"])
    # deviations -4/3, -1/3, 5/3 and -1, 1, 0; ranks 1 2 3 and 1 3 2
    assert values["pearson"] == pytest.approx(1 / math.sqrt(42 / 9 * 2))
    assert values["spearman"] == pytest.approx(0.5)
    constant = measured("similarity", "score", [1.0, 1.0], ["0", "1"])
    assert constant == {"pearson": 0, "spearman": 0}


def test_tagging_metrics_count_whole_entities():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["O", "B-PER"]]
    values = measured("tagging", "tags", predicted, gold)
    assert values["entity_f1"] == pytest.approx(2 / 3)
    assert values["accuracy"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("inside", ["U B L", "S B E", "S B I", "S B M E", "B B I"])
def test_entities_are_counted_in_every_scheme(inside):
    """Two of three are found: precision 1, recall 2/3."""
    single, *parts = inside.split()
    place = [f"{part}-LOC" for part in parts]
    gold = [[f"{single}-PER", f"{single}-PER", "O", *place]]
    predicted = [[f"{single}-PER", "O", "O", *place]]
    labels = tuple({*gold[0]})
    values = measured("tagging", "tags", predicted, gold, labels)
    assert values["entity_f1"] == pytest.approx(0.8)
    assert values["accuracy"] == (len(place) + 2) / (len(place) + 3)


def test_words_that_are_not_counted():
    gold, predicted = [["B-X", "-100", "O"], ["-100"]], [["B-X"] * 3, ["B-X"]]
    values = measured("tagging", "tags", predicted, gold, ("B-X", "O"))
    assert values["accuracy"] == 0.5
    assert values["entity_f1"] == pytest.approx(2 / 3)
    assert "entity_f1" not in measured("tagging", "tags", gold, gold, ("0", "B-X"))


NOTHING = "there is nothing to learn"


@pytest.mark.parametrize(
    ("task", "metric", "labels", "rows", "message"),
    [
        (TOPIC, "accuracy", "xy", [{"label": "x"}] * 2, f"'label', 'x': {NOTHING}"),
        (TOPIC, "accuracy", "xy", [{"label": "x"}, {"label": "y"}], None),
        (TOPIC, "f1", "xyz", [{"label": "x"}], "'f1' is of one label, and.*macro_f1"),
        (TOPIC, "f1", "xy", [{"label": "x"}], "[.]positive_label=y, or"),
        (topic_of("x"), "f1", "xyz", [{"label": "x"}, {"label": "z"}], None),
        (
            topic_of("X"),
            "accuracy",
            "xy",
            [{"label": "x"}],
            "'X' is none",
        ),
        (SIMILARITY, "spearman", "", [{"score": "1"}, {"score": "1.0"}], NOTHING),
        (SIMILARITY, "spearman", "", [{"score": "1"}, {"score": "2"}], None),
        (TAGGING, "accuracy", "0", [{"tags": ["O", "-100", "O"]}], NOTHING),
        (TAGGING, "accuracy", "OX", [{"tags": ["O", "X"]}], None),
        (
            TAGGING,
            "entity_f1",
            "012",
            [{"tags": ["0", "1", "2"]}],
            "have '0', '1'",
        ),
        (
            TAGGING,
            "entity_f1",
            ("B_X", "O"),
            [{"tags": ["O", "B_X"]}],
            "have 'B_X'",
        ),
        (TAGGING, "entity_f1", ("U-X", "O"), [{"tags": ["O", "U-X"]}], None),
        (SPAN, "f1", "", [{"answers": {"text": [], "answer_start": []}}], NOTHING),
        (SPAN, "f1", "", [good(SPAN)], None),
        (CHOICE, "accuracy", "01", [{"answer": "0"}], None),
    ],
)
def test_what_cannot_be_learnt_or_measured_is_said(task, metric, labels, rows, message):
    why = KINDS[task.kind].misfit(records(*rows), task, tuple(labels), metric)
    assert why is None if message is None else re.search(message, why)


def test_squad_metrics():
    gold = [{"text": text} for text in (["cat"], ["dog", "the dogs"], [], [])]
    values = measured("span", "answer", ["The cat!", "a big dog", "", "x"], gold)
    assert values["exact_match"] == 50.0  # the article and the mark do not count
    assert values["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)


def test_the_metrics_of_a_config_are_those_of_its_kind():
    assert OF_KIND.keys() == KINDS.keys()
    for name, get_config in OF_KIND.items():
        task = get_config().task
        assert task.kind == name and task.metric in KINDS[name].metrics


def failed(kind, name, values):
    predictions = [{name: value, "gold": i} for i, value in enumerate(values)]
    return KINDS[kind].is_constant(predictions)


def test_predictions_that_do_not_differ_are_a_failed_run():
    for kind, name, same, different in (
        ("classification", "label", ["a", "a"], ["a", "b"]),
        ("choice", "label", ["a", "a"], ["a", "b"]),
        ("tagging", "tags", [["O", "O"], ["O"]], [["O", "B-X"], ["O"]]),
        ("span", "answer", ["", ""], ["", "x"]),
        ("similarity", "score", [0.5, 0.501], [0.5, 0.6]),
    ):
        assert failed(kind, name, same)
        assert not failed(kind, name, different)
        assert not failed(kind, name, same[:1])


def test_the_floor_is_the_loss_of_who_does_not_look(tokenizer):
    rows = records(*({"text": "a", "label": label} for label in "xxxy"))
    examples = encode(rows, TOPIC, tokenizer, "bert")
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert KINDS["classification"].floor(examples) == pytest.approx(expected)
    rows = records(*({"one": "a", "two": "b", "score": s} for s in "0044"))
    assert KINDS["similarity"].floor(encode(rows, SIMILARITY, tokenizer, "gpt")) == 4
    rows = records({"words": list("abcd"), "tags": ["O", "O", "O", "B-X"]})
    floor = KINDS["tagging"].floor(encode(rows, TAGGING, tokenizer, "bert"))
    assert floor == pytest.approx(expected)
    examples = encode(records(good(SPAN)), SPAN, tokenizer, "bert", labels=())
    assert KINDS["span"].floor(examples) == pytest.approx(math.log(7))


# Runs


def test_a_run_keeps_its_task(tmp_path):
    config = squad.get_config()
    task = splits.make_task(config, KINDS["span"])
    assert not splits.is_task_run(tmp_path)
    splits.save_task(tmp_path, task, ("a", "b"))
    assert splits.is_task_run(tmp_path)
    assert splits.load_task(tmp_path) == ("span", ("a", "b"))


def test_the_task_of_an_older_run_opens(tmp_path):
    older = {
        "kind": "classification",
        "text_columns": ["text"],
        "label_column": "label",
        "labels": ["negativ", "übel"],
        "question_columns": [],
        "answer_columns": [],
    }
    (tmp_path / "task.json").write_text(json.dumps(older, indent=2))
    assert splits.load_task(tmp_path) == ("classification", ("negativ", "übel"))


# One file and one line


def test_no_other_file_names_a_kind():
    own = {f"tasks/{name}.py" for name in KINDS} | {"tasks/__init__.py"}
    named = []
    for path in sorted(ROOT.glob("**/*.py")):
        place = path.relative_to(ROOT)
        elsewhere = {"configs", "formats", "tests", "docs", "benchmarks", "notebooks"}
        if place.parts[0] in elsewhere or str(place) in own or place.parts[0][0] == ".":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in (*KINDS,):
                named.append(f"{place}, line {node.lineno}: {node.value}")
    assert not named


def encode_lengths(split):
    shown, cuts = split.texts()
    encoded = []
    for (text,) in shown:
        sequences = [split.frame.around(text)]
        slot = {"scores": np.float32(len(text)), "weights": np.float32(1)}
        places = {"readout_positions": split.frame.readouts(sequences)}
        encoded.append(joined(sequences, slot, places))
    return encoded, cuts


LENGTH = dataclasses.replace(
    KINDS["similarity"],
    columns={"text_columns": (1, 1)},
    encode=encode_lengths,
    command="measure",
)


def test_a_new_kind_is_one_record(tokenizer, monkeypatch):
    """How long is a text? Encoded, packed, learnt, predicted and shown."""
    monkeypatch.setitem(tasks.KINDS, "length", LENGTH)
    config = topic.get_config()
    config.task.update(kind="length", metric="pearson")
    task = splits.make_task(config, KINDS["length"])
    rows = records({"text": "a b c"}, {"text": "a"})
    examples = encode(rows, task, tokenizer, "gpt", labels=())
    shape = packing.RowShape(2, 8, 1, False)
    (made,) = packing.evaluation_batches(examples, shape)
    batch = jax.device_put(made)
    model = model_of(LENGTH, "gpt", 0)
    params = model.init(jax.random.key(0), batch)
    loss, weight, _ = LENGTH.loss(model.apply(params, batch)["scores"], batch)
    assert (float(weight), batch["scores"].tolist()) == (2, [[3], [1]])
    assert np.isfinite(loss)
    outputs = np.asarray(model.apply(params, batch)["scores"])
    found = dict(LENGTH.found(made, outputs))
    predicted = predictions.predict(LENGTH, examples, rows, found, task)
    assert [line["place"] for line in predicted] == [row.place for row in rows]
    assert predicted[1]["score"] == pytest.approx(float(outputs[1, 0, 0]))
    table = [*predictions.table(LENGTH, task, (), zip(rows, predicted, strict=True))]
    assert table[0].split() == ["score", "text"] and table[1].endswith("a b c")


def test_shares_are_a_softmax_whatever_the_size():
    found = scores.shares(np.float32([[1e4, 1e4], [-1e30, 0]]))
    np.testing.assert_allclose(found, [[0.5, 0.5], [0, 1]])
