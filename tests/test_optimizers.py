"""Schedules at named steps; decay, clipping and groups by their effect."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from errors import UserError
from models.bert import Bert
from models.gpt import Gpt
from training.optimizers import (
    RELEASED_SHAPES,
    SHAPES,
    assign_groups,
    decay_mask,
    group_rates,
    group_summary,
    group_table,
    layerwise_groups,
    make_optimizer,
    make_schedule,
    parse_groups,
    stop_frozen,
)
from training.step import create_state, make_train_step

ALL_ALIKE = ((".*", {}),)
NO_DECAY = (r".*/bias", r".*/scale")
CONSTANT = {
    "schedule": "constant",
    "learning_rate": 0.1,
    "end_learning_rate": 0.0,
    "warmup_steps": 0,
    "total_steps": 100,
}


def schedule(shape, **changes):
    settings = {
        "schedule": shape,
        "learning_rate": 1.0,
        "end_learning_rate": 0.1,
        "warmup_steps": 10,
        "total_steps": 110,
    }
    return make_schedule(**(settings | changes))


def assigned(params, groups, weight_decay=0.0, no_decay=NO_DECAY):
    groups = parse_groups(groups)
    return assign_groups(params, groups, weight_decay=weight_decay, no_decay=no_decay)


def grouped(
    params, groups, schedule=CONSTANT, weight_decay=0.0, no_decay=NO_DECAY, **changes
):
    settings = {
        "b1": 0.9,
        "b2": 0.999,
        "epsilon": 1e-8,
        "clip_norm": 0.0,
        "adam": "adamw",
    }
    groups = assigned(params, groups, weight_decay, no_decay)
    return make_optimizer(groups, schedule, **(settings | changes))


def all_ones(tree):
    return jax.tree.map(jnp.ones_like, tree)


@pytest.fixture
def params():
    return {
        "layer_0": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)},
        "norm": {"scale": jnp.full(2, 2.0), "bias": jnp.full(2, 2.0)},
        "embeddings": {"token": {"embedding": jnp.full((3, 2), 2.0)}},
    }


@pytest.mark.parametrize(
    ("shape", "halfway", "last"),
    [
        ("linear", 0.55, 0.1),
        ("cosine", 0.55, 0.1),
        ("constant", 1.0, 1.0),
        ("inverse_square_root", (10 / 60) ** 0.5, (10 / 110) ** 0.5),
    ],
)
def test_schedule_at_named_updates(shape, halfway, last):
    rate = schedule(shape)
    found = [float(rate(step)) for step in (0, 4, 9, 59, 109)]
    np.testing.assert_allclose(found, [0.1, 0.5, 1.0, halfway, last], rtol=1e-6)


def test_cosine_is_no_line():
    rate = schedule("cosine")
    quarter = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(float(rate(34)), quarter, rtol=1e-6)


def test_schedule_without_warm_up_starts_below_the_peak_by_one_update():
    rate = schedule("linear", warmup_steps=0, total_steps=10, end_learning_rate=0.0)
    np.testing.assert_allclose(float(rate(0)), 0.9, rtol=1e-6)
    np.testing.assert_allclose(float(rate(9)), 0.0, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES + RELEASED_SHAPES)
def test_a_single_update_learns(shape):
    rate = schedule(shape, warmup_steps=0, total_steps=1, end_learning_rate=0.0)
    assert float(rate(0)) == float(jax.jit(rate)(jnp.zeros((), jnp.int32))) == 1.0


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"schedule": "cosin"}, "optim.schedule='cosin'"),
        ({"schedule": "linear", "warmup_steps": 110}, "optim.warmup_steps=110"),
        ({"schedule": "inverse_square_root", "warmup_steps": 0}, "warmup_steps=0"),
        ({"schedule": "slanted_triangular", "warmup_steps": 0}, "warmup_steps=0"),
    ],
)
def test_bad_schedules_name_the_setting(changes, culprit):
    with pytest.raises(UserError, match=culprit):
        schedule(changes.pop("schedule"), **changes)


@pytest.mark.parametrize(
    ("shape", "at_updates"),
    [
        # T = 100, warm-up 10, end 0: x = t / T, w = 0.1
        ("gpt1_linear", {0: 0.0, 5: 0.5 * 0.95, 10: 0.9, 11: 0.89, 99: 0.01}),
        ("gpt1_cosine", {0: 0.0, 10: 1.0, 50: 0.5, 75: 0.5 - 0.5 * 0.5**0.5}),
        ("bert_linear", {0: 0.0, 9: 0.9, 10: 0.9, 11: 0.89, 99: 0.01}),
    ],
)
def test_schedules_of_the_releases(shape, at_updates):
    rate = schedule(shape, end_learning_rate=0.0, total_steps=100)
    found = [float(rate(step)) for step in at_updates]
    np.testing.assert_allclose(found, list(at_updates.values()), rtol=1e-5)


def test_bert_rate_jumps_down_after_the_warm_up():
    rate = schedule(
        "bert_linear", end_learning_rate=0.0, warmup_steps=1000, total_steps=10_000
    )
    np.testing.assert_allclose(float(rate(999)), 0.999, rtol=1e-5)
    np.testing.assert_allclose(float(rate(1000)), 0.9, rtol=1e-5)


def test_slanted_triangle_is_the_formula_of_ulmfit():
    peak, ratio, cut_fraction, total = 0.01, 32, 0.1, 200
    rate = schedule(
        "slanted_triangular",
        learning_rate=peak,
        end_learning_rate=peak / ratio,
        warmup_steps=20,
        total_steps=total,
    )
    cut = int(total * cut_fraction)
    for t in (0, 7, 19, 20, 21, 110, 199):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_fraction - 1))
        expected = peak * (1 + p * (ratio - 1)) / ratio
        np.testing.assert_allclose(float(rate(t)), expected, rtol=1e-5)


def test_zero_gradient_shrinks_decayed_parameters_by_rate_times_decay(params):
    tx = grouped(params, ALL_ALIKE, CONSTANT | {"learning_rate": 0.5}, weight_decay=0.1)
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    after = optax.apply_updates(params, updates)
    kept = 2.0 * (1 - 0.5 * 0.1)
    np.testing.assert_allclose(after["layer_0"]["kernel"], kept, rtol=1e-6)
    np.testing.assert_allclose(
        after["embeddings"]["token"]["embedding"], kept, rtol=1e-6
    )
    for group, name in (("layer_0", "bias"), ("norm", "scale"), ("norm", "bias")):
        np.testing.assert_array_equal(after[group][name], 2.0)


def test_a_no_decay_pattern_that_matches_nothing_is_named(params):
    with pytest.raises(UserError, match="gamma"):
        decay_mask(params, (".*/gamma",))


def test_two_updates_equal_adamw_written_out_in_numpy(params):
    rate, decay, b1, b2, epsilon = 0.01, 0.1, 0.9, 0.999, 1e-8
    tx = grouped(
        params,
        ALL_ALIKE,
        CONSTANT | {"learning_rate": rate},
        weight_decay=decay,
        clip_norm=1.0,
    )
    state, generator = tx.init(params), np.random.default_rng(0)
    mask = jax.tree.leaves(decay_mask(params, NO_DECAY))
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    m, v = [0.0] * len(expected), [0.0] * len(expected)
    for t in (1, 2):
        grads = [generator.normal(size=p.shape).astype(np.float32) for p in expected]
        tree = jax.tree.unflatten(jax.tree.structure(params), grads)
        updates, state = tx.update(tree, state, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        assert norm > 1  # the clip, over all parameters together, has something to do
        for i, grad in enumerate(grads):
            m[i] = b1 * m[i] + (1 - b1) * grad / norm
            v[i] = b2 * v[i] + (1 - b2) * (grad / norm) ** 2
            update = (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + epsilon)
            expected[i] = expected[i] - rate * (update + mask[i] * decay * expected[i])
    for found, value in zip(jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5)


# Groups.


def test_one_step_moves_each_group_by_what_it_says():
    names = ("embeddings", "layer_0", "layer_1", "layer_10", "pooler", "head")
    params = {
        name: {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}
        for name in names
    }
    groups = (
        ("embeddings/.*", {"frozen": True}),
        ("layer_0/.*", {"multiplier": 0.5}),
        ("layer_1/.*", {"weight_decay": 0.3}),
        ("layer_10/bias", {"multiplier": 4.0}),
        (
            "head/.*",
            {"learning_rate": 1.0, "schedule": "linear", "warmup_steps": 4}
            | {"multiplier": 2.0},
        ),
        (".*", {}),
    )
    tx = grouped(params, groups, weight_decay=0.05, no_decay=(".*/bias",))
    updates, _ = jax.jit(tx.update)(all_ones(params), tx.init(params), params)
    after = optax.apply_updates(params, updates)
    # A first Adam update is the rate; decay adds rate * decay * 2 to that of kernels.
    moved = {  # kernel, bias
        "embeddings": (0.0, 0.0),
        "layer_0": (0.05 + 0.05 * 0.05 * 2, 0.05),
        "layer_1": (0.1 + 0.1 * 0.3 * 2, 0.1),
        "layer_10": (0.1 + 0.1 * 0.05 * 2, 0.4),
        "pooler": (0.1 + 0.1 * 0.05 * 2, 0.1),
        "head": (0.5 + 0.5 * 0.05 * 2, 0.5),  # 2.0 * 1.0 * 1 / 4 of the warm-up
    }
    for name, (kernel, bias) in moved.items():
        np.testing.assert_allclose(2 - after[name]["kernel"], kernel, rtol=1e-5)
        np.testing.assert_allclose(2 - after[name]["bias"], bias, rtol=1e-5)


def test_a_group_thaws_at_its_step_as_if_adam_began_there():
    start = {"body": jnp.float32([1.0, -2.0]), "head": jnp.ones(2)}
    falling = CONSTANT | {"schedule": "linear", "total_steps": 10}
    tx = grouped(start, (("body", {"thaw_at": 3}), ("head", {})), falling, no_decay=())
    params, state = start, tx.init(start)
    update = jax.jit(tx.update)
    for step in range(5):
        grads = {"body": jnp.float32([3.0, -5.0]) * (step + 1), "head": jnp.ones(2)}
        updates, state = update(grads, state, params)
        before, params = params, optax.apply_updates(params, updates)
        rate = 0.1 * (1 - (step + 1) / 10)
        np.testing.assert_allclose(before["head"] - params["head"], rate, rtol=1e-4)
        moved = before["body"] - params["body"]
        if step < 3:
            np.testing.assert_array_equal(params["body"], start["body"])
        elif step == 3:  # moments from before would show as another length
            np.testing.assert_allclose(moved, [rate, -rate], rtol=1e-4)
        else:
            assert (np.abs(moved) > 0.5 * rate).all()


def test_clip_is_over_all_that_is_trained_and_nothing_else():
    params = {name: jnp.zeros(1) for name in ("frozen", "late", "a", "b")}
    groups = (
        ("frozen", {"frozen": True}),
        ("late", {"thaw_at": 1}),
        ("a", {"multiplier": 2.0}),
        ("b", {}),
    )
    # With this epsilon a first update is, but for 1e-6 of it, rate * gradient / 1e6.
    tx = grouped(
        params,
        groups,
        CONSTANT | {"learning_rate": 1e6},
        epsilon=1e6,
        no_decay=(),
        clip_norm=1.0,
    )
    state = tx.init(params)
    grads = {
        name: jnp.float32([x]) for name, x in zip(params, (9, 12, 3, 4), strict=True)
    }
    updates, state = tx.update(grads, state, params)
    found = {name: float(-value[0]) for name, value in updates.items()}
    expected = {"frozen": 0.0, "late": 0.0, "a": 2 * 3 / 5, "b": 4 / 5}
    assert found == pytest.approx(expected, rel=1e-5)
    updates, _ = tx.update(grads, state, params)
    assert float(-updates["late"][0]) == pytest.approx(12 / 13, rel=1e-5)


def test_clip_norm_0_clips_nothing_and_below_0_is_refused(params):
    # With this epsilon an update is, but for 1e-6 of it, rate * gradient / 1e6.
    settings = {"schedule": CONSTANT | {"learning_rate": 1e6}, "epsilon": 1e6}
    tx = grouped(params, ALL_ALIKE, **settings, clip_norm=0.0)
    updates, _ = tx.update(all_ones(params), tx.init(params), params)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -1.0, rtol=1e-5)
    with pytest.raises(UserError, match=r"optim.clip_norm=-1.0 must be at least 0"):
        grouped(params, ALL_ALIKE, clip_norm=-1.0)


def test_states_of_older_runs_have_the_same_paths(params):
    groups = (  # the first two do the same, so they share a state
        ("layer_0/bias", {}),
        ("norm/.*", {"weight_decay": 0.0}),
        ("embeddings/.*", {"frozen": True}),
        (".*", {"thaw_at": 0}),
    )
    state = grouped(params, groups, weight_decay=0.01, clip_norm=1.0).init(params)
    trained = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(state)
    }
    adam = "2/inner_states/{}/inner_state/0/0/{}"
    rate = "2/inner_states/{}/inner_state/1/count"
    expected = {adam.format(f"group_{i}", "count") for i in (1, 2)}
    expected |= {rate.format(f"group_{i}") for i in (1, 2)}
    for moment in ("mu", "nu"):
        expected |= {adam.format("group_2", f"{moment}/layer_0/kernel")}
        expected |= {
            adam.format("group_1", f"{moment}/{path}")
            for path in ("layer_0/bias", "norm/bias", "norm/scale")
        }
    assert trained == expected


def test_frozen_groups_hold_no_optimizer_memory(params):
    tx = grouped(
        params, (("embeddings/.*", {"frozen": True}), (".*", {})), clip_norm=1.0
    )
    arrays = [leaf for leaf in jax.tree.leaves(tx.init(params)) if leaf.ndim]
    trained = sum(x.size for x in jax.tree.leaves(params)) - 3 * 2
    assert sum(leaf.size for leaf in arrays) == 2 * trained


def count_products(loss, params):
    return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")


def test_no_gradient_is_computed_for_frozen_groups():
    params = {f"layer_{i}": jnp.eye(3) for i in range(4)}
    groups = (("layer_[01]", {"frozen": True}), (".*", {}))

    def loss(params):
        hidden = jnp.ones((5, 3))
        for i in range(4):
            hidden = jnp.tanh(hidden @ params[f"layer_{i}"])
        return hidden.sum()

    frozen = assigned(params, groups, no_decay=())

    def frozen_loss(params):
        return loss(stop_frozen(params, frozen))

    # forward 4, gradients of kernels 4, of hidden vectors 3
    assert count_products(loss, params) == 4 + 4 + 3
    assert count_products(frozen_loss, params) == 4 + 2 + 1
    every, some = jax.grad(loss)(params), jax.grad(frozen_loss)(params)
    for i in range(4):
        name = f"layer_{i}"
        assert every[name].any()
        np.testing.assert_array_equal(some[name], every[name] if i > 1 else 0.0)


@pytest.mark.parametrize(
    ("groups", "parts"),
    [
        ((("layer_0/.*", {}), (".*/scale", {})), ("no pattern", "embeddings/token")),
        (((".*", {}), ("layr_0/kernel", {})), ("'layr_0/kernel'", "layer_0/kernel")),
        ((("kernel", {}), (".*", {})), ("'kernel' matches no", "layer_0/kernel")),
        ((("layer_0", {}), (".*", {})), ("'layer_0' matches no", "layer_0/kernel")),
        (((".*", {}), ("norm/.*", {})), ("'norm/.*'", "before it")),
        (((".*", {"multiplyer": 2.0}),), ("multiplyer", "multiplier")),
        (((".*", {"multiplier": -1.0}),), ("multiplier=-1.0", "at least 0")),
        (((".*", {"thaw_at": "3"}),), ("thaw_at='3'", "number")),
        (((".*", {"frozen": "no"}),), ("frozen='no'", "True or False")),
        (((".*", {"frozen": True}),), ("every parameter is frozen",)),
        (
            (("norm/.*", {"frozen": True, "multiplier": 2.0}), (".*", {})),
            ("'norm/.*' is frozen", "remove multiplier"),
        ),
        ((("(", {}),), ("'(' is no regular expression",)),
        ((".*", {}), ("holds '.*'", "pair")),
        (((".*", {"warmup_steps": 100}),), ("warmup_steps=100", "optim.groups sets")),
        (((".*", {"schedule": "cosin"}),), ("schedule='cosin'", "use one of")),
    ],
)
def test_bad_groups_are_named(params, groups, parts):
    with pytest.raises(UserError) as error:
        grouped(params, groups)
    for part in parts:
        assert part in str(error.value)


def test_an_unknown_adam_is_named(params):
    with pytest.raises(UserError, match=r"optim.adam='lamb'.*adamw, bert, gpt1"):
        grouped(params, ((".*", {}),), adam="lamb")


def test_groups_are_the_same_after_a_config_and_json():
    groups = (("embeddings/.*", {"frozen": True}), (".*", {"multiplier": 0.5}))
    config = ConfigDict({"groups": groups})
    again = ConfigDict(json.loads(json.dumps(config.to_dict())))
    parsed = parse_groups(groups)
    assert parsed == parse_groups(config.groups) == parse_groups(again.groups)


GROUPS = (
    ("norm/.*", {"weight_decay": 0.0, "learning_rate": 3.0, "multiplier": 0.1}),
    ("embeddings/.*", {"frozen": True}),
    ("layer_0/.*", {"multiplier": 0.5, "thaw_at": 7}),
)


def cells(table):
    return [re.split("  +", line) for line in table.splitlines()]


def test_group_table_tells_all(params):
    table = group_table(params, assigned(params, GROUPS, 0.01), 0.1)
    assert cells(table) == [
        ["path", "shape", "group", "peak rate", "decay", "frozen"],
        ["embeddings/token/embedding", "3x2", "embeddings/.*", "0", "0", "yes"],
        ["layer_0/bias", "2", "layer_0/.*", "0.05", "0", "until step 7"],
        ["layer_0/kernel", "2x2", "layer_0/.*", "0.05", "0.01", "until step 7"],
        ["norm/bias", "2", "norm/.*", "0.3", "0", "no"],
        ["norm/scale", "2", "norm/.*", "0.3", "0", "no"],
    ]
    assert {
        line.index(cell)
        for line, cell in zip(table.splitlines(), ("shape", "3x2"), strict=False)
    } == {28}


def test_group_summary_is_a_line_a_group_in_their_order(params):
    params["embeddings"]["token"]["embedding"] = jnp.ones((600, 2))
    summary = group_summary(params, assigned(params, GROUPS, 0.01), 0.1)
    assert cells(summary) == [
        ["group", "tensors", "parameters", "peak rate", "decay", "frozen"],
        ["norm/.*", "2", "4", "0.3", "0", "no"],
        ["embeddings/.*", "1", "1,200", "0", "0", "yes"],
        ["layer_0/.*", "2", "6", "0.05", "0.01 (1 of 2)", "until step 7"],
    ]
    alike = group_summary(params, assigned(params, ALL_ALIKE, 0.01, ()), 0.1)
    assert cells(alike)[1:] == [[".*", "5", "1,210", "0.1", "0.01", "no"]]


# Traced numbers.


@pytest.mark.parametrize("adam", ["adamw", "bert", "gpt1"])
def test_trials_as_one_vmapped_step_equal_each_alone(params, adam):
    trials = {
        "learning_rate": jnp.float32([0.03, 0.3]),
        "weight_decay": jnp.float32([0.0, 0.2]),
        "b1": jnp.float32([0.9, 0.5]),
        "multiplier": jnp.float32([4.0, 0.25]),
    }

    def loss_terms(params, batch, key):
        del key
        hidden = jnp.tanh(batch["x"] @ params["layer_0"]["kernel"])
        loss = (hidden @ params["norm"]["scale"] + params["norm"]["bias"].sum()) ** 2
        return {"square": (loss.sum(), float(loss.size), {})}

    def train(trial):
        schedule = CONSTANT | {"learning_rate": trial["learning_rate"]}
        groups = (
            ("embeddings/.*", {"frozen": True}),
            ("layer_0/.*", {"multiplier": trial["multiplier"]}),
            ("norm/.*", {}),
        )
        tx = grouped(
            params,
            groups,
            schedule,
            weight_decay=trial["weight_decay"],
            b1=trial["b1"],
            clip_norm=1.0,
            adam=adam,
        )
        step = make_train_step(
            loss_terms, tx, make_schedule(**schedule), micro_batches=1
        )
        return create_state(params, tx), step

    batch = {"x": jax.random.normal(jax.random.key(1), (8, 2))}
    key = jax.random.key(0)
    together = jax.vmap(lambda trial: train(trial)[0])(trials)
    step = jax.jit(jax.vmap(lambda trial, state: train(trial)[1](state, batch, key)))
    for _ in range(5):
        together, metrics = step(trials, together)
    for i in range(2):
        alone, step_alone = train({name: float(x[i]) for name, x in trials.items()})
        step_alone = jax.jit(step_alone)
        for _ in range(5):
            alone, metrics_alone = step_alone(alone, batch, key)
        moved = alone.params["layer_0"]["kernel"] - params["layer_0"]["kernel"]
        assert (np.abs(moved) > 0.01).all()
        for found, expected in zip(
            jax.tree.leaves((together.params, metrics)),
            jax.tree.leaves((alone.params, metrics_alone)),
            strict=True,
        ):
            np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-6)


# Layer-wise rates.

ELECTRA = {"decay": 0.8, "top_exponent": 2, "thaw_every": 0}
ULMFIT = {"decay": 1 / 2.6, "top_exponent": 1, "thaw_every": 0}


def layerwise(params, num_layers, first=(), **settings):
    def depth(path):
        if path.startswith("embeddings/"):
            return 0
        layer = re.match(r"layer_(\d+)/", path)
        return int(layer[1]) + 1 if layer else num_layers + 1

    return layerwise_groups(
        params, depth, num_layers, first=parse_groups(first), **settings
    )


def shapes_of(model, head=True):
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return params | ({"head": {"kernel": jnp.zeros((4, 3))}} if head else {})


def bert(num_layers):
    return Bert(
        vocab_size=9,
        max_positions=4,
        num_token_types=2,
        num_layers=num_layers,
        num_heads=1,
        head_dim=4,
        hidden_size=4,
        ffn_size=4,
        activation="relu",
        norm_epsilon=1e-12,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
        init_std=0.02,
        truncated_init=True,
        pooler=True,
        masked_lm_head=True,
        next_sentence_head=True,
    )


def gpt(num_layers, pre_norm):
    return Gpt(
        vocab_size=9,
        max_positions=4,
        num_layers=num_layers,
        num_heads=1,
        head_dim=4,
        hidden_size=4,
        ffn_size=4,
        activation="gelu_tanh",
        pre_norm=pre_norm,
        norm_epsilon=1e-5,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
        table_dropout=False,
        init_std=0.02,
        position_init_std=0.02,
        residual_scaling=False,
    )


def rates(params, groups):
    """The rate of each top-level module, as its parameters really move by."""
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), params)
    groups = assign_groups(params, groups, weight_decay=0.0, no_decay=())
    schedule = CONSTANT | {"learning_rate": 1.0}
    tx = make_optimizer(
        groups, schedule, b1=0.9, b2=0.999, epsilon=1e-8, clip_norm=0.0, adam="adamw"
    )
    updates, _ = jax.jit(tx.update)(all_ones(params), tx.init(params), params)
    moved = {}
    for module, tree in updates.items():
        values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        np.testing.assert_array_equal(values, values[0])
        moved[module] = -float(values[0])
    return moved


def test_electra_rates_are_those_of_the_release():
    params = shapes_of(bert(1))
    params |= {f"layer_{i}": params["layer_0"] for i in range(12)}
    table = {  # 0.8 ** (12 + 2 - depth); embeddings depth 0, layer i i + 1, head 14
        "embeddings": 0.04398046511104,
        "layer_0": 0.0549755813888,
        "layer_1": 0.068719476736,
        "layer_2": 0.08589934592,
        "layer_3": 0.1073741824,
        "layer_4": 0.134217728,
        "layer_5": 0.16777216,
        "layer_6": 0.2097152,
        "layer_7": 0.262144,
        "layer_8": 0.32768,
        "layer_9": 0.4096,
        "layer_10": 0.512,
        "layer_11": 0.64,
        "pooler": 0.8,
        "masked_lm": 0.8,
        "next_sentence": 0.8,
        "head": 1.0,
    }
    found = rates(params, layerwise(params, 12, **ELECTRA))
    assert found == pytest.approx(table, rel=1e-5)


def test_electra_large_rates_of_a_gpt_with_a_final_norm():
    params = shapes_of(gpt(2, pre_norm=True))
    table = {"head": 1, "final_norm": 0.9, "layer_1": 0.81, "layer_0": 0.729}
    found = rates(params, layerwise(params, 2, **(ELECTRA | {"decay": 0.9})))
    assert found == pytest.approx(table | {"embeddings": 0.6561}, rel=1e-5)


def test_ulmfit_rates_fall_by_two_point_six():
    params = shapes_of(gpt(3, pre_norm=False))
    groups = layerwise(params, 3, **ULMFIT)
    table = {
        "head": 1.0,
        "layer_2": 0.38461538,
        "layer_1": 0.14792899,
        "layer_0": 0.05689577,
        "embeddings": 0.02188299,
    }
    assert rates(params, groups) == pytest.approx(table, rel=1e-5)


def test_gradual_unfreezing_thaws_a_layer_at_a_time_from_the_top():
    params = shapes_of(bert(2))
    groups = layerwise(params, 2, **(ULMFIT | {"thaw_every": 50}))
    assert [(group.pattern, group.thaw_at) for group in groups] == [
        ("head/.*", 0),
        ("masked_lm/.*|next_sentence/.*|pooler/.*", 50),
        ("layer_1/.*", 50),
        ("layer_0/.*", 100),
        ("embeddings/.*", 150),
    ]


def test_own_groups_stand_before_the_layer_wise_ones():
    params = shapes_of(gpt(1, pre_norm=False), head=False)
    first = (("embeddings/.*", {"frozen": True}),)
    found = rates(params, layerwise(params, 1, **ELECTRA, first=first))
    assert found == pytest.approx({"embeddings": 0.0, "layer_0": 0.64}, rel=1e-5)


def test_layers_of_two_directions_share_a_rate_by_their_depth():
    names = ("layer_0", "layer_1", "layer_10", "gate")
    directions = {name: dict.fromkeys(names, jnp.ones(1)) for name in ("back", "forth")}
    depths = {"layer_0": 1, "layer_1": 2, "layer_10": 11, "gate": 12}
    groups = layerwise_groups(
        directions, lambda path: depths[path.split("/")[1]], 11, **ELECTRA
    )
    assert [(group.pattern, group.multiplier) for group in groups] == [
        ("back/gate|forth/gate", 0.8),
        ("back/layer_10|forth/layer_10", 0.8**2),
        ("back/layer_1|forth/layer_1", 0.8**11),
        ("back/layer_0|forth/layer_0", 0.8**12),
    ]


# The optimizers of the releases.


@pytest.mark.parametrize(
    ("kind", "changes", "first_rates"),
    [  # of fine-tuning, T = 1000
        (
            "gpt1",
            {"schedule": "gpt1_linear", "learning_rate": 6.25e-5, "warmup_steps": 2},
            [0, 6.25e-5 / 2 * 0.999, 6.25e-5 * 0.998],
        ),
        (
            "bert",
            {"schedule": "bert_linear", "learning_rate": 5e-5, "warmup_steps": 100},
            [0, 5e-5 / 100, 2 * 5e-5 / 100],
        ),
    ],
)
def test_recipes_are_the_releases_written_out_in_numpy(
    params, kind, changes, first_rates
):
    schedule = CONSTANT | {"total_steps": 1000} | changes
    # Large enough for the differences to be seen in float32.
    epsilon, schedule["learning_rate"] = 0.01, 1e4 * schedule["learning_rate"]
    tx = grouped(
        params,
        ALL_ALIKE,
        schedule,
        weight_decay=0.5,
        epsilon=epsilon,
        clip_norm=1.0,
        adam=kind,
    )
    state, generator = tx.init(params), np.random.default_rng(0)
    mask = jax.tree.leaves(decay_mask(params, NO_DECAY))
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    m, v = [0.0] * len(expected), [0.0] * len(expected)
    for t, first_rate in enumerate(first_rates, start=1):
        correction = np.sqrt(1 - 0.999**t) / (1 - 0.9**t) if kind == "gpt1" else 1.0
        rate = 1e4 * first_rate * correction
        grads = [generator.normal(size=p.shape).astype(np.float32) for p in expected]
        updates, state = tx.update(
            jax.tree.unflatten(jax.tree.structure(params), grads), state, params
        )
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        for i, grad in enumerate(grads):
            m[i] = 0.9 * m[i] + 0.1 * grad / norm
            v[i] = 0.999 * v[i] + 0.001 * (grad / norm) ** 2
            update = m[i] / (np.sqrt(v[i]) + epsilon)
            expected[i] = expected[i] - rate * (update + 0.5 * mask[i] * expected[i])
        for found, value in zip(jax.tree.leaves(params), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=5e-5)


def test_rates_of_groups_by_step():
    params = {name: jnp.zeros(1) for name in ("head", "late", "old", "rest")}
    groups = (
        ("head", {"multiplier": 10.0}),
        ("late", {"thaw_at": 2}),
        ("old", {"frozen": True}),
        (".*", {}),
    )
    found = group_rates(assigned(params, groups, no_decay=()), CONSTANT)
    rates = {
        name: rate(jnp.arange(3)).round(6).tolist() for name, rate in found.items()
    }
    assert [*rates] == ["head", "late", "old", ".*"]
    np.testing.assert_allclose(
        [*rates.values()], [[1.0] * 3, [0, 0, 0.1], [0] * 3, [0.1] * 3], rtol=1e-6
    )
