"""Every layout of devices does what one does, and each holds its share of the state."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import configs
import train
from errors import UserError
from training import costs, parallel, runs
from training.checkpoints import Checkpoints, load_params
from training.metrics import read_metrics

ROWS, LENGTH, STEPS = 16, 16, 3
LAYOUTS = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": -1},
    "tensor": {"data": 2, "tensor": 4},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
    "pmap": {"data": 8},
}


def tiny(name):
    """With dropout, whose masks depend on the rows alone."""
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.update(batch_size=ROWS, sequence_length=LENGTH)
    config.model.update(num_layers=1, num_heads=4, head_dim=4, vocab_size=64)
    config.model.update(embedding_dropout=0.1, residual_dropout=0.1)
    config.model.attention_dropout = 0.1
    # Gradients that are 0 but for rounding (of key biases) do not become whole updates.
    config.optim.epsilon = 1e-2
    config.model.precision = "float32"
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
        config.run.parallel = mode
        batches = [random_batch(config)]
        job = train.make_job(
            config,
            train.Data(*[None] * 5, (batches,), {"loss": batches, "masked": batches}),
            train.make_mesh(config),
        )
        feed = job.phases[0].feed
        self.plan = job.plan.state
        self.program = runs.update(job, feed, micro_batches)
        self.state = parallel.start_state(job.fresh(), job.plan.optimizer, self.plan)
        self.batch = feed.placed(batches[0], job.plan.mesh, micro_batches)

    def train(self, steps):
        losses = []
        for _ in range(steps):
            self.state, metrics = self.program(
                self.state, self.batch, jax.random.key(0)
            )
            losses.append(float(metrics["loss"]))
        return losses


@pytest.fixture(scope="module")
def one_device():
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
    check_exchanged_bytes(run, layout)


def check_exchanged_bytes(run, layout):
    """The formulas of docs/scaling.md; sums for the metrics come on top."""
    leaves = jax.tree.leaves(run.plan.params)
    table = run.plan.params["embeddings"]["token"]["embedding"]
    gradients = 4 * sum(leaf.size for leaf in leaves)
    cut = 4 * sum(leaf.size for leaf in leaves if "fsdp" in leaf.sharding.spec)
    exchanged = costs.collective_bytes(run.program.as_text())
    if layout in ("data", "fsdp"):
        # The table's gradient comes in two parts, of input and output.
        gradients += 4 * table.size
    if layout in ("data", "fsdp", "pmap"):
        assert 0 <= exchanged["all-reduce"] - gradients < 200
    if layout == "fsdp":
        assert 0 <= exchanged["all-gather"] - cut < 0.05 * cut


def held_bytes(tree):
    """By one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_a_checkpoint_goes_on_on_another_layout_and_opens_in_numpy(
    tmp_path, one_device
):
    first = Run("gpt_mini", LAYOUTS["all"])
    losses = first.train(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(first.state)
    checkpoints.wait()
    params, at = load_params(tmp_path)
    assert at == 1
    saved = jax.device_get(first.state.params)
    jax.tree.map(np.testing.assert_array_equal, params, saved)
    second = Run("gpt_mini", LAYOUTS["fsdp"])
    second.state = checkpoints.restore(second.plan)
    checkpoints.close()
    losses += second.train(STEPS - 1)
    check_same(losses, second.state.params, one_device["gpt_mini"])


def test_pmap_sums_micro_batches_before_the_devices(one_device):
    run = Run("gpt_mini", LAYOUTS["pmap"], "pmap", micro_batches=2)
    check_same(run.train(STEPS), run.state.params, one_device["gpt_mini"])
    check_exchanged_bytes(run, "pmap")  # once, not for each micro-batch


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    program = """HloModule jit_step

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %sum = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
}

ENTRY %main.2 (a: bf16[4,2], b: f32[8]) -> f32[8] {
  %a = bf16[4,2]{1,0} parameter(0)
  %start = (bf16[4,2]{1,0}, bf16[16,2]{1,0}) all-gather-start(%a), dimensions={0}
  %done = bf16[16,2]{1,0} all-gather-done(%start)
  %loop = (s32[], f32[8]{0}) while(%t), body=%body.1, backend_config={TRIPS}
  ROOT %part = f32[1]{0} reduce-scatter(%sum), dimensions={0}
}
""".replace("TRIPS", '"known_trip_count":{"n":"3"}')
    assert costs.collective_bytes(program) == {
        "all-gather": 64,
        "all-reduce": 3 * 32,
        "reduce-scatter": 32,
    }


@pytest.mark.parametrize(
    ("sizes", "mode", "field", "value", "message"),
    [
        ({"tensor": 3}, "jit", "vocab_size", 60, r"vocab_size=60 .*tensor=3.*ize=384"),
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


ROOT = Path(__file__).parent.parent
needs_joinable_jax = pytest.mark.skipif(
    jax.__version_info__ < parallel.JOINABLE_JAX, reason="of several processes"
)


@needs_joinable_jax
def test_two_processes_do_what_one_does_and_stop_together(tmp_path, monkeypatch):
    """One of them gets SIGTERM; one process on one device goes on from there."""
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    words = "the model reads a short text and learns which word may follow".split()
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(words, 20)) for _ in range(60)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(documents))
    arguments = [
        "train.py",
        f"--config={ROOT}/configs/bert_mini.py:tiny",
        f"--config.data.corpus={tmp_path / 'corpus.txt'}",
        "--config.data.heldout_fraction=0.3",
        "--config.data.tokenizer.vocab_size=300",
        "--config.model.num_layers=1",
        "--config.optim.eval_every_steps=100",
        "--config.run.log_every_steps=1",
        f"--workdir={tmp_path / 'two'}",
    ]
    words = [*arguments, "--config.run.mesh.data=1"]
    config = configs.parse(words, "train.py").config
    assert train.train(config, tmp_path / "one").exit_status == 0

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=2"),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments, "--config.run.mesh.fsdp=2", "--distributed"],
            cwd=ROOT,
            env=environment | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=(tmp_path / f"stderr_{i}").open("w"),
            text=True,
        )
        for i in range(2)
    ]
    metrics = tmp_path / "two" / "metrics.jsonl"
    while len(read_metrics(metrics)) < 3:
        assert processes[1].poll() is None, (tmp_path / "stderr_1").read_text()
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    shown = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], shown
    assert "stopped by SIGTERM after step" in shown[0]
    assert "(data 2, fsdp 2, tensor 1; processes: 2)" in shown[0]
    assert "step" not in shown[1]
    assert 3 <= load_params(tmp_path / "two")[1] < 20

    assert train.train(config, tmp_path / "two").exit_status == 0
    losses = [
        [
            row["train/loss"]
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
            if "train/loss" in row
        ]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 20
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


START = """
import sys
from jax import distributed
from jax._src import xla_bridge
import finetune, train
from errors import UserError
from training import parallel

def note():
    started = xla_bridge.backends_are_initialized() or distributed.is_initialized()
    print("late" if started else "early")

parallel.keep_freed_memory = note
try:
    {"train.py": train, "finetune.py": finetune}[sys.argv[1]].main(sys.argv[1:])
except UserError as error:
    assert "missing" in str(error), error
assert xla_bridge.backends_are_initialized()
"""


@pytest.mark.parametrize(
    "line",
    [
        "train.py --config=configs/bert_mini.py --config.data.corpus=missing",
        pytest.param(
            "train.py --config=configs/bert_mini.py --config.data.corpus=missing "
            "--distributed",
            marks=needs_joinable_jax,
        ),
        "finetune.py --config=configs/finetune/topic.py --config.data.train=missing",
    ],
)
def test_the_heap_is_set_before_jax_starts_its_threads(line, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    one_process = {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    done = subprocess.run(
        [sys.executable, "-c", START, *line.split(), f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | one_process | {"JAX_COORDINATOR_ADDRESS": address},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("early\n")


def test_several_processes_need_a_newer_jax(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 9, 2))
    monkeypatch.setattr(jax, "__version__", "0.9.2")
    with pytest.raises(UserError, match=r"needs jax 0\.10\.2 or later.*is 0\.9\.2"):
        parallel.join_processes()
