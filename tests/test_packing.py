"""Rows and batches of examples."""

import re

import numpy as np
import pytest
from task_examples import (
    GOOD,
    SIMILARITY,
    SPAN,
    TAGGING,
    TOPIC,
    encode,
    good,
    letters,
    records,
)

from errors import UserError
from tasks import KINDS, packing
from tasks.encoding import Encoded, Examples


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters(tmp_path_factory.mktemp("tokenizer"))


# Packing


def examples_of(lengths):
    """Classification examples of given lengths, token = example index."""
    encoded = [
        Encoded(
            {
                "tokens": np.full(length, index, np.int32),
                "segment_ids": np.ones(length, np.int32),
                "positions": np.arange(length, dtype=np.int32),
                "token_types": np.zeros(length, np.int32),
            },
            {"labels": np.int32(index % 2), "weights": np.float32(1)},
            {"readout_positions": np.zeros(1, np.int32)},
        )
        for index, length in enumerate(lengths)
    ]
    return Examples(("0", "1"), encoded, [], 0)


def random_lengths(kind, count=3000):
    rng = np.random.default_rng(0)
    if kind == "uniform":
        return rng.integers(5, 129, count)
    if kind == "heavy_tail":
        return np.clip(rng.lognormal(2.7, 0.9, count), 4, 128).astype(int)
    if kind == "short_or_long":
        return np.where(rng.random(count) < 0.1, 128, rng.integers(4, 10, count))
    if kind == "all_over_half":
        return rng.integers(65, 70, count)
    return np.full(count, 127)


def shape_for(examples, packed=True, read_once=False):
    return packing.row_shape(
        examples,
        examples_per_batch=32,
        longest_row=512,
        packed=packed,
        read_once=read_once,
    )


def padding_share(batches):
    segment_ids = [batch["segment_ids"] for batch in batches]
    return 1 - np.count_nonzero(segment_ids) / np.size(segment_ids)


@pytest.mark.parametrize(
    "kind", ["uniform", "heavy_tail", "short_or_long", "all_over_half", "constant"]
)
def test_padding_is_under_a_tenth(kind):
    examples = examples_of(random_lengths(kind))
    shape = shape_for(examples)
    assert shape.length <= 512
    batches = packing.training_batches(examples, shape, seed=3)
    seen = [batches[step] for step in range(40)]
    assert padding_share(seen) < 0.1
    per_batch = np.mean([np.sum(batch["example_ids"] >= 0) for batch in seen])
    assert abs(per_batch - 32) < 8


@pytest.mark.parametrize("count", [300, 3000])
@pytest.mark.parametrize(
    "kind", ["uniform", "heavy_tail", "short_or_long", "all_over_half", "constant"]
)
def test_padding_of_what_is_read_once_is_under_a_tenth(kind, count):
    examples = examples_of(random_lengths(kind, count))
    shape = shape_for(examples, read_once=True)
    batches = packing.evaluation_batches(examples, shape)
    assert padding_share(batches) < 0.1
    assert 20 < count / len(batches) < 48


def ids_of(batches):
    ids = np.concatenate([batch["example_ids"].ravel() for batch in batches])
    return ids[ids >= 0].tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_every_example_once_in_evaluation(packed):
    examples = examples_of(random_lengths("heavy_tail", 501))
    shape = shape_for(examples, packed)
    ids = ids_of(packing.evaluation_batches(examples, shape))
    assert sorted(ids) == [*range(501)]
    if not packed:
        assert ids == [*range(501)]
    last = packing.evaluation_batches(examples, shape)[-1]
    is_empty = (last["example_ids"] < 0).all(axis=1)
    assert not last["segment_ids"][is_empty].any()
    assert not last["weights"][last["example_ids"] < 0].any()


def test_every_example_once_an_epoch_in_a_new_order():
    examples = examples_of(random_lengths("uniform", 200))
    shape = packing.RowShape(rows=3, length=256, slots=8, packed=True)
    batches = packing.training_batches(examples, shape, seed=1)
    ids = ids_of(batches[step] for step in range(60))
    epochs = [ids[i : i + 200] for i in range(0, len(ids) - 199, 200)]
    assert len(epochs) >= 3
    for epoch in epochs:
        assert sorted(epoch) == [*range(200)]
    assert epochs[0] != epochs[1]
    other = packing.training_batches(examples, shape, seed=2)
    assert ids_of([other[0]]) != ids_of([batches[0]])


def test_any_step_can_be_computed_alone():
    examples = examples_of(random_lengths("uniform", 60))
    shape = packing.RowShape(rows=2, length=256, slots=8, packed=True)
    batches = packing.training_batches(examples, shape, seed=1)
    in_order = [batches[step] for step in range(40)]
    for step in (39, 7, 20, 0):
        alone = packing.training_batches(examples, shape, seed=1)[step]
        np.testing.assert_equal(alone, in_order[step])
        np.testing.assert_equal(batches[step], in_order[step])


def laid_out_one_by_one(examples, rows, shape):
    """A batch, example after example."""
    any_example = examples.encoded[0]
    batch = {
        name: np.zeros((shape.rows, shape.length), array.dtype)
        for name, array in any_example.arrays.items()
    }
    batch["tokens"][:] = examples.pad
    for name, value in (*any_example.slot.items(), *any_example.places.items()):
        batch[name] = np.zeros((shape.rows, shape.slots, *np.shape(value)), value.dtype)
    batch["example_ids"] = np.full((shape.rows, shape.slots), -1, np.int32)
    for row, indices in enumerate(rows):
        begin = segments = 0
        for slot, index in enumerate(indices):
            example = examples.encoded[index]
            end = begin + len(example)
            for name, array in example.arrays.items():
                batch[name][row, begin:end] = array
            batch["segment_ids"][row, begin:end] += segments
            for name, value in example.slot.items():
                batch[name][row, slot] = value
            for name, value in example.places.items():
                batch[name][row, slot] = value + begin
            batch["example_ids"][row, slot] = index
            segments = int(batch["segment_ids"][row, end - 1])
            begin = end
    return batch


def longer(task, words):
    """A good record, its text with so many words more."""
    fields = dict(good(task))
    if task.kind == "tagging":
        return {name: [*value, *value[:1] * words] for name, value in fields.items()}
    fields[task.text_columns[0]] += " a" * words
    return fields


@pytest.mark.parametrize("family", ["bert", "gpt"])
@pytest.mark.parametrize("task", [task for task, _ in GOOD], ids=lambda t: t.kind)
@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_is_what_its_examples_are_laid_out_one_by_one(
    tokenizer, task, family, packed
):
    rows = records(*(longer(task, number % 4) for number in range(23)))
    labels = {"labels": ("0", "1")} if task.kind == "choice" else {}
    examples = encode(rows, task, tokenizer, family, **labels)
    assert len({*examples.lengths.tolist()}) > 1
    slots = 3 if packed else 1
    shape = packing.RowShape(2, 3 * int(examples.lengths.max()) + 1, slots, packed)
    for batches in (
        packing.evaluation_batches(examples, shape),
        packing.training_batches(examples, shape, seed=0),
    ):
        for step in range(min(15, len(batches))):
            batch = batches[step]
            rows = [row[row >= 0].tolist() for row in batch["example_ids"]]
            expected = laid_out_one_by_one(examples, rows, shape)
            assert batch.keys() == expected.keys()
            for name, array in expected.items():
                assert batch[name].dtype == array.dtype
                np.testing.assert_array_equal(batch[name], array, err_msg=name)


def test_packed_rows_hold_what_single_rows_hold():
    examples = examples_of(random_lengths("uniform", 50))
    packed = packing.evaluation_batches(examples, shape_for(examples, read_once=True))
    single = packing.evaluation_batches(examples, shape_for(examples, packed=False))

    def contents(batches):
        found = {}
        for batch in batches:
            for row, slot in np.argwhere(batch["example_ids"] >= 0):
                begin = batch["readout_positions"][row, slot, 0]
                segment = batch["segment_ids"][row, begin]
                inside = batch["segment_ids"][row] == segment
                found[int(batch["example_ids"][row, slot])] = (
                    batch["tokens"][row, inside].tolist(),
                    batch["positions"][row, inside].tolist(),
                    int(batch["labels"][row, slot]),
                )
        return found

    assert contents(packed) == contents(single)
    assert len(contents(packed)) == 50


def test_first_fit():
    lengths = np.array([5, 6, 3, 2, 4, 2])
    assert packing.pack(lengths, 10, slots=9) == [[0, 2, 3], [1, 4], [5]]
    assert packing.pack(lengths, 10, slots=2) == [[0, 2], [1, 3], [4, 5]]
    assert packing.pack(lengths, 10, slots=1) == [[i] for i in range(6)]


def test_examples_longer_than_a_row_are_refused():
    examples = examples_of([5, 600])
    with pytest.raises(
        UserError, match=r"longest example has 600 tokens .* rows hold 512"
    ):
        shape_for(examples)
    shape = packing.RowShape(rows=2, length=256, slots=8, packed=True)
    with pytest.raises(UserError, match="an example has 600 tokens and rows hold 256"):
        packing.evaluation_batches(examples, shape)


def test_describe(tokenizer):
    rows = records({"text": "a b", "label": "pos"}, {"text": "c", "label": "neg"})
    shape = packing.RowShape(rows=1, length=8, slots=2, packed=True)
    for task, row, expected in [
        (TOPIC, rows, "example 1 -> 'neg'"),
        (SIMILARITY, records(good(SIMILARITY)), "example 0 -> 1"),
        (TAGGING, records(good(TAGGING)), "a/O b/O"),
        (SPAN, records(good(SPAN)), "example 0 -> 'b'"),
    ]:
        examples = encode(row, task, tokenizer, "bert")
        (batch,) = packing.evaluation_batches(examples, shape)
        text = packing.describe(KINDS[task.kind], batch, examples, tokenizer, rows=1)
        assert expected in text
        assert re.search(r"sequence 1: \[CLS\] \w", text)
