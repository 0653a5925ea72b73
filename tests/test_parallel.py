"""Every layout of devices does what one does, and each holds its share of the state."""

import importlib

import jax
import numpy as np
import pytest

import models
import train
from errors import UserError
from training import parallel
from training.checkpoints import Checkpoints, load_params

ROWS, LENGTH, STEPS = 16, 16, 3
# Nothing here is about speed: XLA need not optimize.
pytestmark = pytest.mark.usefixtures("unoptimized")
LAYOUTS = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": -1},
    "tensor": {"data": 2, "tensor": 4},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
    "pmap": {"data": 8},
}


def tiny(name):
    """Without dropout, whose masks pmap draws otherwise."""
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.update(batch_size=ROWS, sequence_length=LENGTH)
    config.model.update(num_layers=1, num_heads=4, head_dim=4, vocab_size=64)
    config.model.update(embedding_dropout=0.0, residual_dropout=0.0)
    config.model.attention_dropout = 0.0
    # Gradients that are 0 but for rounding (of key biases) do not become whole updates.
    config.optim.epsilon = 1e-2
    config.run.update(precision="float32")
    return config


def random_batch(config):
    """Some rows predict nothing, so that the devices' weights differ."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 64, (ROWS, LENGTH), np.int32)
    batch = {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "targets": np.roll(tokens, -1, axis=1),
        "weights": (generator.random(tokens.shape) < 0.5).astype(np.float32),
    }
    batch["weights"][: ROWS // 4] = 0.0
    if config.model.family == "bert":
        batch["token_types"] = np.zeros_like(tokens)
        batch["predict_positions"] = batch["positions"]
    return batch


class Run:
    """A model on a layout of devices: its program and its state."""

    def __init__(self, name, sizes, mode="jit", micro_batches=1):
        config = tiny(name)
        config.run.mesh.update({"data": 1, "fsdp": 1, "tensor": 1} | sizes)
        config.run.update(parallel=mode, micro_batches=micro_batches)
        self.mesh, self.batch = train.make_mesh(config), random_batch(config)
        model = models.build(config.model.to_dict(), "float32")
        terms = train.LOSS_TERMS[config.objective.name](model, 1)
        tx, self.plan = train.plan_state(config, model, self.batch, self.mesh)
        terms = parallel.gathering(terms, self.plan.params, self.mesh)
        self.program = train.compile_train_step(
            config, terms, tx, self.plan, self.batch, self.mesh
        )
        places = parallel.places(self.plan.params)
        params = train.init_params(model, self.batch, 0, places)
        self.state = parallel.start_state(params, tx, self.plan)

    def train(self, steps):
        losses = []
        batch = parallel.shard_batch(self.batch, ROWS, self.mesh)
        for _ in range(steps):
            self.state, metrics = self.program(self.state, batch, jax.random.key(0))
            losses.append(float(metrics["loss"]))
        return losses


@pytest.fixture(scope="module")
def unoptimized():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def one_device(unoptimized):
    """Of each model the losses and the parameters."""
    found = {}
    for name in ("gpt_mini", "bert_mini"):
        run = Run(name, {})
        losses = run.train(STEPS)
        found[name] = losses, jax.device_get(run.state.params)
    return found


def check_same(losses, params, expected):
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.device_get(params),
        expected[1],
    )


# Layout -> at most this share of the parameters, and of each moment, is on a device.
SHARES = {"data": 1, "fsdp": 1 / 4, "tensor": 1 / 2, "all": 1 / 2.5, "pmap": 1}


@pytest.mark.parametrize(
    ("name", "layout"),
    [("gpt_mini", layout) for layout in LAYOUTS]
    + [("bert_mini", layout) for layout in ("fsdp", "all", "pmap")],
)
def test_losses_and_parameters_are_those_of_one_device(name, layout, one_device):
    run = Run(name, LAYOUTS[layout], "pmap" if layout == "pmap" else "jit")
    losses = run.train(STEPS)
    assert len(set(losses)) == STEPS
    check_same(losses, run.state.params, one_device[name])
    # Some are small and stay whole; Adam has two moments and a few counters.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state.params))
    held = held_bytes(run.state.params)
    assert held <= SHARES[layout] * size
    assert 2 * held <= held_bytes(run.state.opt_state) <= 2 * held + 64


def held_bytes(tree):
    """By one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_a_checkpoint_goes_on_on_another_layout_and_opens_in_numpy(
    tmp_path, one_device
):
    first = Run("gpt_mini", LAYOUTS["all"])
    losses = first.train(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(first.state, None)
    checkpoints.wait()
    params, at = load_params(tmp_path)
    assert at == 1
    saved = jax.device_get(first.state.params)
    jax.tree.map(np.testing.assert_array_equal, params, saved)
    second = Run("gpt_mini", LAYOUTS["fsdp"])
    second.state = checkpoints.restore(second.state)
    checkpoints.close()
    losses += second.train(STEPS - 1)
    check_same(losses, second.state.params, one_device["gpt_mini"])


def test_pmap_sums_micro_batches_before_the_devices(one_device):
    run = Run("gpt_mini", LAYOUTS["pmap"], "pmap", micro_batches=2)
    check_same(run.train(STEPS), run.state.params, one_device["gpt_mini"])


@pytest.mark.parametrize(
    ("sizes", "mode", "field", "value", "message"),
    [
        ({"tensor": 8}, "jit", "vocab_size", 60, r"vocab_size=60 .*tensor=8.*size=64"),
        ({"tensor": 8}, "jit", "num_heads", 4, r"num_heads=4 .*tensor=8.*heads=8"),
        ({"fsdp": 8}, "jit", "hidden_size", 12, r"hidden_size=12 .*fsdp=8.*size=16"),
        ({"fsdp": 8}, "pmap", "num_heads", 4, r"'pmap'.*run\.mesh\.fsdp=1"),
        ({"data": 8}, "pjit", "num_heads", 4, r"run\.parallel='pjit'.*'jit' or 'pmap'"),
    ],
)
def test_layouts_that_cannot_be_are_named(sizes, mode, field, value, message):
    config = tiny("gpt_mini")
    config.model[field] = value
    config.run.mesh.update({"data": 1, "fsdp": 1, "tensor": 1} | sizes)
    with pytest.raises(UserError, match=message):
        parallel.mapped_axis(mode, train.make_mesh(config))
