"""The records of the families: complete, and true of the models that they describe."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from configs import bert_base, elmo, foreword_masked, gpt2
from errors import UserError
from models.transformer import logits, padded_size
from objectives.cross_entropy import weighted_cross_entropy

FAMILIES = [*models.FAMILIES]
CONFIGS = {
    "bert": bert_base.get_config,
    "elmo": elmo.get_config,
    "foreword": foreword_masked.get_config,
    "gpt": gpt2.get_config,
}
# Of a module's fields those that a config does not set in `model`, or not as they are.
COMPUTATION = {"dtype", "remat", "fused_attention", "parent", "name"}


def tiny_fields(name, **changes):
    """The fields of a whole config at the family's tiny sizes, with every head."""
    fields = CONFIGS[name]().model.to_dict() | models.FAMILIES[name].tiny
    return fields | {"precision": "float32"} | changes


def batch_of(fields, tokens):
    """Tokens, and for a family that reads them characters of some spelling."""
    tokens = jnp.asarray(tokens, jnp.int32)
    batch = {"tokens": tokens}
    if "characters" in models.family_of(fields).inputs:
        places = 31 * np.arange(fields["max_characters"])
        spelt = (7 * np.asarray(tokens)[..., None] + places) % 256
        batch["characters"] = jnp.asarray(spelt)
    return batch


def word_table(params, fields):
    """The parameter [V, ...] of two axes."""
    (table,) = (
        leaf
        for path, leaf in flatten_dict(params, sep="/").items()
        if models.has_vocabulary(path, fields) and leaf.ndim == 2
    )
    return table


def abstract_params(fields):
    batch = batch_of(fields, jnp.zeros((1, 2)))
    tree = jax.eval_shape(models.build(fields).init, jax.random.key(0), batch)
    return flatten_dict(tree, sep="/")


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_are_the_fields_of_the_module(name):
    family = models.FAMILIES[name]
    fields = {field.name for field in dataclasses.fields(family.module)}
    settings = [setting.name for setting in family.settings]
    assert len(settings) == len(set(settings))
    assert set(settings) == {f"model.{field}" for field in fields - COMPUTATION}
    given = tiny_fields(name)
    assert given.keys() - {"family", "precision"} == fields - COMPUTATION
    for setting in family.settings:
        value = given[setting.name.removeprefix("model.")]
        assert isinstance(value, setting.type), setting.name
        assert setting.allows(value), setting.name


@pytest.mark.parametrize("name", FAMILIES)
def test_records_name_only_what_there_is(name):
    family, fields = models.FAMILIES[name], tiny_fields(name)
    named = [needed for fields in family.outputs.values() for needed in fields]
    named += [size for sizes in family.cut_sizes.values() for size in sizes]
    named += [*family.dropouts, *family.tiny]
    assert fields.keys() >= set(named)
    parameters = inspect.signature(family.module.__call__).parameters
    assert parameters.keys() >= {*family.inputs, "dropout_rows"}
    assert family.inputs[0] in ("tokens", "characters")
    assert {*family.frames} <= {"left", "both"} and family.frames
    assert ("sees" in fields) == (len(family.frames) > 1)
    for frame in family.frames.values():
        assert frame.readout in ("first", "last", "mean")
    assert family.pooler(fields) in ("base", "new", "none")
    kernel = family.initializer(models.build(fields).module)(jax.random.key(0), (9, 9))
    assert kernel.shape == (9, 9)


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_those_that_the_model_gives(name):
    family = models.FAMILIES[name]
    batch = batch_of(tiny_fields(name), jnp.zeros((1, 4)))
    asked = [(), *((output,) for output in family.outputs)]
    if len(family.frames) == 1:
        asked.append((*family.outputs,))
    for outputs in asked:
        fields = models.only_with(tiny_fields(name), outputs)
        model = models.build(fields)
        found = jax.eval_shape(
            lambda key, model=model: model.apply(model.init(key, batch), batch),
            jax.random.key(0),
        )
        assert models.outputs_of(fields) == found.keys() & family.outputs.keys()
        assert models.outputs_of(fields) >= {*outputs}


@pytest.mark.parametrize("name", FAMILIES)
def test_patterns_match_parameters(name):
    family, fields = models.FAMILIES[name], tiny_fields(name)
    shapes = abstract_params(fields)
    axes = set(family.cut_sizes) | {None}
    for pattern, spec in family.placement:
        found = [path for path in shapes if re.fullmatch(pattern, path)]
        if pattern == r"masked_lm/bias" and "masked_lm" not in family.outputs:
            continue  # the rules of all Transformers
        assert found, pattern
        assert {*spec} <= axes, pattern
    for pattern in family.vocabulary:
        assert any(re.fullmatch(pattern, path) for path in shapes), pattern
    padded = {path for path, leaf in shapes.items() if leaf.shape[0] == 512}
    with_vocabulary = {path for path in shapes if models.has_vocabulary(path, fields)}
    assert with_vocabulary == padded
    # A task keeps all of a base but what only pre-training has.
    kept = abstract_params(models.only_with(fields, ()))
    left = {path for path in shapes if re.fullmatch(family.pretraining_only, path)}
    assert shapes.keys() - kept.keys() == left


@pytest.mark.parametrize("name", FAMILIES)
def test_depth_rises_from_the_input_to_the_heads(name):
    family, fields = models.FAMILIES[name], tiny_fields(name, num_layers=3)
    depths = {path: family.depth(fields, path) for path in abstract_params(fields)}
    depths["head/dense/kernel"] = family.depth(fields, "head/dense/kernel")
    for path, depth in depths.items():
        part = path.split("/")[0]
        order = ["embeddings", "layer_0", "layer_1", "layer_2"]
        assert depth == (order.index(part) if part in order else 4), path


@pytest.mark.parametrize("name", FAMILIES)
def test_flops_grow_with_everything(name):
    family, fields = models.FAMILIES[name], tiny_fields(name)

    def flops(length=8, predicted=4, **changes):
        changed = fields | changes
        sizes = {path: leaf.size for path, leaf in abstract_params(changed).items()}
        return family.forward_flops(changed, sizes, length, predicted)

    least = flops()
    assert least > 0
    assert flops(num_layers=3) > least
    assert flops(vocab_size=513) > least
    assert flops(predicted=5) > least


def test_next_sentence_needs_the_pooler():
    (rule,) = models.FAMILIES["bert"].rules
    model = {"next_sentence_head": True, "pooler": False}
    assert "set model.pooler=True" in rule(ConfigDict({"model": model}))
    for change in ({"pooler": True}, {"next_sentence_head": False}):
        assert rule(ConfigDict({"model": model | change})) is None
    assert "next_sentence" not in models.outputs_of(tiny_fields("bert") | model)


# Padded vocabularies


def random_model(name, vocab_size):
    """(fields, model, parameters far from 0, in the padding too, and a batch)."""
    fields = tiny_fields(name, vocab_size=vocab_size, num_layers=1)
    fields |= dict.fromkeys(models.FAMILIES[name].dropouts, 0.0)
    model, generator = models.build(fields), np.random.default_rng(0)
    batch = batch_of(fields, generator.integers(0, vocab_size, (2, 8)))
    batch["targets"] = jnp.asarray(generator.integers(0, vocab_size, (2, 8)))
    params = model.init(jax.random.key(0), batch)
    params = jax.tree.map(
        lambda x: x + jnp.float32(generator.normal(0, 0.3, x.shape)), params
    )
    return fields, model, params, batch


def language(name):
    return "masked_lm" if "masked_lm" in models.FAMILIES[name].outputs else "causal_lm"


def loss_of(name, model, batch, vocab_size=None):
    def loss(params):
        scores = logits(model.apply(params, batch)[language(name)])[..., :vocab_size]
        targets = batch["targets"]
        total, weight, _ = weighted_cross_entropy(
            scores, targets, jnp.ones(targets.shape)
        )
        return total / weight

    return loss


@pytest.mark.parametrize("name", FAMILIES)
def test_the_padding_never_wins_and_never_counts(name):
    """Whatever its rows hold: loss and gradients are those of the words alone."""
    fields, model, params, batch = random_model(name, 130)
    scores = logits(model.apply(params, batch)[language(name)])
    assert scores.shape == (2, 8, 256)
    assert (scores[..., 130:] == -jnp.inf).all()
    assert np.isfinite(scores[..., :130]).all()
    both = jax.jit(jax.value_and_grad(loss_of(name, model, batch)))(params)
    alone = jax.jit(jax.value_and_grad(loss_of(name, model, batch, 130)))(params)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
        both,
        alone,
    )
    gradients = flatten_dict(both[1], sep="/")
    for path, gradient in gradients.items():
        if models.has_vocabulary(path, fields):
            assert gradient[:130].any()
            assert not gradient[130:].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_padding_stays_0(name):
    fields, model, _, batch = random_model(name, 130)
    params = model.init(jax.random.key(0), batch)
    before = word_table(params, fields)
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(loss_of(name, model, batch))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    table = word_table(params, fields)
    assert len(table) == 256
    assert not table[130:].any()
    assert (table[:130] != before[:130]).all()
    if name == "bert":
        assert not params["masked_lm"]["bias"][130:].any()
        assert params["masked_lm"]["bias"][:130].all()


@pytest.mark.parametrize("name", FAMILIES)
def test_fresh_padding_is_0(name):
    fields = tiny_fields(name, vocab_size=130)
    model = models.build(fields)
    params = model.init(jax.random.key(0), batch_of(fields, jnp.zeros((1, 2))))
    table = word_table(params, fields)
    assert table[:130].all() and not table[130:].any()
    assert padded_size(130) == 256 and padded_size(128) == 128 and padded_size(1) == 128


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_and_filled(name):
    fields, _, params, _ = random_model(name, 130)
    flat = {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}
    cut = models.cut_vocabulary(flat, fields)
    filled = models.fill_vocabulary(cut, fields)
    assert cut.keys() == filled.keys() == flat.keys()
    for path, array in flat.items():
        if models.has_vocabulary(path, fields):
            assert len(cut[path]) == 130 and len(filled[path]) == 256
            np.testing.assert_array_equal(filled[path][:130], array[:130])
            assert not filled[path][130:].any()
        else:
            assert cut[path] is filled[path] is array
    assert len(word_table(unflatten_dict(cut, sep="/"), fields)) == 130


# Cut over devices


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_the_vocabulary_of_gpt2_can_be_cut(tensor):
    fields = gpt2.get_config().model.to_dict() | {"precision": "float32"}
    fields |= {"num_layers": 1, "num_heads": 8}
    assert fields["vocab_size"] == 50257
    models.check_cuts(fields, {"data": 1, "fsdp": 1, "tensor": tensor})
    types = (AxisType.Auto,) * 3
    mesh = jax.make_mesh((8 // tensor, 1, tensor), ("data", "fsdp", "tensor"), types)
    shapes = abstract_params(fields)
    family = models.family_of(fields)
    for path, leaf in shapes.items():
        spec = next((s for p, s in family.placement if re.fullmatch(p, path)), ())
        part = NamedSharding(mesh, PartitionSpec(*spec)).shard_shape(leaf.shape)
        if path == "embeddings/token/embedding":
            assert part == (50304 // tensor, fields["hidden_size"])


def test_sizes_that_an_axis_cannot_cut():
    fields = tiny_fields("bert", num_heads=6, ffn_size=60, hidden_size=15)
    models.check_cuts(fields, {"data": 8, "fsdp": 5, "tensor": 2})
    for mesh, message in (
        ({"fsdp": 2, "tensor": 1}, r"hidden_size=15 .*fsdp=2: .*of 15.*hidden_size=16"),
        ({"fsdp": 1, "tensor": 5}, r"vocab_size=512 .*tensor=5: .*of 512.*size=640"),
        ({"fsdp": 1, "tensor": 4}, r"num_heads=6 .*tensor=4: .*of 6.*num_heads=8"),
    ):
        with pytest.raises(UserError, match=message):
            models.check_cuts(fields, mesh)
    models.check_cuts(
        fields | {"vocab_size": 257, "num_heads": 3}, {"fsdp": 1, "tensor": 3}
    )
