"""Heads and the objectives of labelled tasks, against numbers computed by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from configs import elmo_mini, foreword_masked
from models import heads
from objectives.cross_entropy import weighted_cross_entropy
from objectives.regression import regression
from objectives.span import span
from tasks.record import HeadSpec
from tests.task_examples import head_of

CLASSIFICATION = HeadSpec("examples", lambda num_labels: num_labels)
SIMILARITY = HeadSpec("examples", lambda _: 1)
CHOICE = HeadSpec("readouts", lambda _: 1)
TAGGING = HeadSpec("tokens", lambda num_labels: num_labels)
SPAN = HeadSpec("tokens", lambda _: 2, drops=False)
BERT = {
    "family": "bert",
    "precision": "float32",
    "vocab_size": 40,
    "max_positions": 16,
    "num_token_types": 2,
    "num_layers": 2,
    "num_heads": 2,
    "head_dim": 4,
    "hidden_size": 8,
    "ffn_size": 16,
    "activation": "gelu_tanh",
    "norm_epsilon": 1e-12,
    "embedding_dropout": 0.1,
    "attention_dropout": 0.1,
    "residual_dropout": 0.1,
    "init_std": 0.5,
    "truncated_init": True,
    "pooler": False,
    "masked_lm_head": True,
    "next_sentence_head": False,
}
GPT = {
    name: BERT[name]
    for name in BERT
    if name
    not in (
        "num_token_types",
        "truncated_init",
        "pooler",
        "masked_lm_head",
        "next_sentence_head",
    )
}
GPT |= {"family": "gpt", "pre_norm": True, "table_dropout": False}
GPT |= {"position_init_std": 0.5, "residual_scaling": True}


def inputs(**more):
    tokens = jnp.arange(12).reshape(1, 12) % 7
    segment_ids = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
    positions = jnp.array([[*range(5), *range(4), 0, 0, 0]])
    return {
        "tokens": tokens,
        "segment_ids": segment_ids,
        "positions": positions,
        **more,
    }


def run(fields, spec, **more):
    model = heads.build(fields, spec, num_labels=3, head=head_of(0.1))
    batch = inputs(**more)
    params = model.init(jax.random.key(0), batch)
    return model.apply(params, batch), params


@pytest.mark.parametrize("fields", [BERT, GPT], ids=["bert", "gpt"])
def test_the_base_keeps_its_paths_and_the_new_lies_under_head(fields):
    base = models.build(fields)
    before = jax.eval_shape(lambda: base.init(jax.random.key(0), inputs()))
    readouts = jnp.zeros((1, 1, 1), int)
    _, params = run(fields, CLASSIFICATION, readout_positions=readouts)
    assert set(params) == (set(before) - {"masked_lm"}) | {"head"}
    for name in set(params) - {"head"}:
        assert jax.tree.structure(params[name]) == jax.tree.structure(before[name])
    assert set(params["head"]) == {"dense"} | ({"pooler"} if fields is BERT else set())


def test_a_pretrained_pooler_keeps_its_path():
    readouts = jnp.zeros((1, 1, 1), int)
    with_pooler = BERT | {"pooler": True}
    _, params = run(with_pooler, CLASSIFICATION, readout_positions=readouts)
    assert params["pooler"]["kernel"].shape == (8, 8)
    assert set(params["head"]) == {"dense"}
    _, params = run(with_pooler, TAGGING)
    assert "pooler" not in params


def test_classification_reads_the_pooled_state():
    readouts = jnp.array([[[0], [5]]])
    out, params = run(BERT, CLASSIFICATION, readout_positions=readouts)
    state = out["hidden"][0, jnp.array([0, 5])]
    dense, pooler = params["head"]["dense"], params["head"]["pooler"]
    pooled = jnp.tanh(state @ pooler["kernel"] + pooler["bias"][None])
    expected = pooled @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(out["scores"][0], expected, rtol=1e-5)


def test_similarity_of_a_decoder_adds_the_two_orders():
    out, params = run(GPT, SIMILARITY, readout_positions=jnp.array([[[4, 8]]]))
    added = out["hidden"][0, 4] + out["hidden"][0, 8]
    expected = added @ params["head"]["dense"]["kernel"][:, 0]
    np.testing.assert_allclose(out["scores"], [[[expected]]], rtol=1e-5)


def test_a_choice_scores_each_answer():
    out, params = run(GPT, CHOICE, readout_positions=jnp.array([[[4, 8]]]))
    expected = out["hidden"][0, jnp.array([4, 8])] @ params["head"]["dense"]["kernel"]
    np.testing.assert_allclose(out["scores"][0, 0], expected, rtol=1e-5)


def test_tags_and_spans_score_each_token():
    for spec, outputs in ((TAGGING, 3), (SPAN, 2)):
        out, params = run(BERT, spec)
        dense = params["head"]["dense"]
        expected = out["hidden"] @ dense["kernel"] + dense["bias"][None, None]
        assert out["scores"].shape == (1, 12, outputs)
        np.testing.assert_allclose(out["scores"], expected, rtol=1e-5)


def test_of_pretraining_stays_what_is_kept():
    """A head of pre-training only where it is asked for; a decoder's is its table."""
    for fields, keep, found in (
        (BERT, (), set()),
        (BERT, ("masked_lm",), {"masked_lm"}),
        (BERT | {"pooler": True}, ("next_sentence",), {"next_sentence"}),
        (GPT, (), {"causal_lm"}),
    ):
        model = heads.build(fields, TAGGING, num_labels=2, head=head_of(0.0), keep=keep)
        params = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), inputs()))
        output = jax.eval_shape(model.apply, params, inputs())
        assert output.keys() & {"masked_lm", "next_sentence", "causal_lm"} == found


# Objectives


def test_classification_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    loss, weight, metrics = weighted_cross_entropy(
        logits, jnp.array([[0, 1]]), jnp.array([[1.0, 2.0]])
    )
    assert float(loss) == pytest.approx(math.log(2) + 2 * math.log(10), rel=1e-6)
    assert (float(weight), float(metrics["accuracy"])) == (3.0, 1.0)


def test_regression_by_hand():
    loss, weight, metrics = regression(
        jnp.array([[1.0, 2.0, 9.0]]),
        jnp.array([[3.0, 1.0, 0.0]]),
        jnp.array([[1.0, 0.5, 0.0]]),
    )
    assert (float(loss), float(weight)) == (4.5, 1.5)
    assert float(metrics["absolute_error"]) == 2.5


def test_span_by_hand():
    starts = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    ends = jnp.log(jnp.array([0.1, 0.8, 0.1]))
    unused = jnp.full((3, 2), -1e30)
    logits = jnp.stack([jnp.stack([starts, ends], axis=-1), unused])[None]
    arguments = jnp.array([[0, 0]]), jnp.array([[2, 0]]), jnp.array([[1.0, 0.0]])
    loss, weight, metrics = span(logits, *arguments)
    assert float(loss) == pytest.approx((math.log(2) + math.log(10)) / 2, rel=1e-6)
    assert (float(weight), float(metrics["accuracy"])) == (1.0, 0.5)
    gradient = jax.grad(lambda x: span(x, *arguments)[0])(logits)
    assert np.isfinite(gradient).all() and (gradient[0, 1] == 0).all()


@pytest.mark.parametrize("spec", [CLASSIFICATION, TAGGING])
def test_dropout_of_the_head_is_a_setting(spec):
    fields = BERT | {name: 0.0 for name in BERT if name.endswith("_dropout")}
    batch = inputs(readout_positions=jnp.array([[[0], [5]]]))
    _, params = run(fields, spec, readout_positions=batch["readout_positions"])

    def scores(rate, key, spec=spec):
        model = heads.build(fields, spec, num_labels=3, head=head_of(rate))
        return model.apply(params, batch, key)["scores"]

    still, key = scores(0.5, None), jax.random.key(0)
    np.testing.assert_array_equal(scores(0.0, key), still)
    assert (scores(0.5, key) != still).any()
    undropped = dataclasses.replace(spec, drops=False)
    np.testing.assert_array_equal(scores(0.5, key, undropped), still)


@pytest.mark.parametrize("fields", [BERT, GPT], ids=["bert", "gpt"])
def test_micro_batches_with_their_rows_numbers_draw_the_same_masks(fields):
    model = heads.build(fields, CLASSIFICATION, num_labels=3, head=head_of(0.5))
    batch = inputs(readout_positions=jnp.array([[[0], [5]]]))
    batch = {name: jnp.repeat(array, 4, axis=0) for name, array in batch.items()}
    params, key = model.init(jax.random.key(0), batch), jax.random.key(1)
    whole = model.apply(params, batch, key)["scores"]
    rows = jnp.array([3, 1])
    part = {name: array[rows] for name, array in batch.items()} | {"rows": rows}
    found = model.apply(params, part, key)["scores"]
    np.testing.assert_allclose(found, whole[rows], rtol=1e-5, atol=1e-6)
    assert len(np.unique(whole, axis=0)) == 4


# Features: a mix of layers, an LSTM


ELMO = elmo_mini.get_config("tiny").model.to_dict() | {"softmax": False}
OWN = foreword_masked.get_config("tiny").model.to_dict()
FAMILIES = {"bert": BERT, "gpt": GPT, "foreword": OWN, "elmo": ELMO}


def features(family, spec, **head):
    """A model with such a head, fresh parameters, and a batch of two sequences."""
    fields = FAMILIES[family] | dict.fromkeys(models.FAMILIES[family].dropouts, 0.0)
    model = heads.build(fields, spec, num_labels=3, head=head_of(0.0, **head))
    batch = inputs(readout_positions=jnp.array([[[0], [5]]]))
    spelt = np.arange(144).reshape(1, 12, 12) % 250
    batch["characters"] = jnp.asarray(spelt)
    return model, model.init(jax.random.key(0), batch), batch


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mix_is_first_the_mean_of_the_layers_and_then_its_formula(family):
    model, params, batch = features(family, TAGGING, layers="mix")
    mix = params["head"]["features"]["mix"]
    assert {name: leaf.shape for name, leaf in mix.items()} == {
        "weights": (3,),
        "scale": (),
    }
    for weights, scale, shares in (
        ([0.0, 0.0, 0.0], 1.0, [1 / 3, 1 / 3, 1 / 3]),
        ([0.0, np.log(2.0), 0.0], 3.0, [0.75, 1.5, 0.75]),
    ):
        mix |= {"weights": jnp.float32(weights), "scale": jnp.float32(scale)}
        output = model.apply(params, batch)
        layers = output["hidden_layers"]
        mixed = sum(
            share * np.array(x) for share, x in zip(shares, layers, strict=True)
        )
        dense = params["head"]["dense"]
        np.testing.assert_allclose(
            output["scores"], mixed @ np.array(dense["kernel"]), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_of_a_sequence_is_its_own(family):
    """Without a pooler, which is for the token that is read out."""
    asked = {} if family == "elmo" else {"pooling": "mean"}
    model, params, batch = features(family, CLASSIFICATION, **asked)
    assert "pooler" not in params and params["head"].keys() == {"dense"}
    output = model.apply(params, batch)
    hidden, kernel = np.array(output["hidden"][0]), params["head"]["dense"]["kernel"]
    expected = np.stack([hidden[:5].mean(axis=0), hidden[5:9].mean(axis=0)])
    np.testing.assert_allclose(output["scores"][0], expected @ kernel, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", [TAGGING, CLASSIFICATION], ids=["tokens", "examples"])
def test_an_lstm_reads_each_sequence_apart(family, spec):
    """Under the layer stand two LSTMs, whose parameters are the head's."""
    head = {"layers": "mix", "kind": "lstm", "size": 4}
    model, params, batch = features(family, spec, **head)
    assert params["head"]["dense"]["kernel"].shape == (8, 3)
    assert params["head"]["features"]["lstm"].keys() == {"forward", "backward"}
    packed = model.apply(params, batch)["scores"]
    for begin, end, example in ((0, 5, 0), (5, 9, 1)):
        places = [name for name in batch if name != "readout_positions"]
        alone = {name: batch[name][:, begin:end] for name in places}
        alone["segment_ids"] = jnp.ones((1, end - begin), jnp.int32)
        alone["readout_positions"] = jnp.array([[[0]]])
        mine = packed[0, begin:end] if spec is TAGGING else packed[0, example]
        found = model.apply(params, alone)["scores"][0]
        found = found if spec is TAGGING else found[0]
        np.testing.assert_allclose(mine, found, rtol=1e-4, atol=1e-5)
