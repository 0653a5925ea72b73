"""The life of a run: batches made ahead; the rest of it is in test_train.py."""

import itertools
import subprocess
import sys
from pathlib import Path

import grain
import numpy as np
import pytest

import train
from configs import gpt_mini
from training import parallel, runs

ROOT = Path(__file__).parent.parent
ROWS, LENGTH = 4, 8


def numbered(number):
    tokens = np.full((ROWS, LENGTH), number % 64, np.int32)
    return {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "targets": tokens,
        "weights": np.ones(tokens.shape, np.float32),
    }


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_made_ahead_keep_their_order_and_start_anywhere(threads):
    """In the second phase, too, whose batches are counted anew."""
    config = gpt_mini.get_config("tiny")
    config.data.update(batch_size=ROWS, sequence_length=LENGTH)
    config.data.phases = ((10, {"batch_size": ROWS}),)
    config.optim.total_steps = 60
    config.run.data_threads = threads
    batches = grain.MapDataset.range(10**9).map(numbered)
    heldout = {"loss": batches}
    data = train.Data(*[None] * 5, (batches, batches[30:]), heldout)
    job = train.make_job(config, data, parallel.make_mesh(4))
    programs = dict.fromkeys((0, 1), runs.Programs(None, {}, micro_batches=1))
    for start in (0, 29):
        ahead = runs.device_batches(job, start, programs)
        for step, batch in enumerate(itertools.islice(ahead, 20), start):
            assert len(batch["tokens"].sharding.device_set) == 4
            number = step if step < 10 else 30 + step - 10
            np.testing.assert_array_equal(batch["tokens"], numbered(number)["tokens"])


def test_threads_end_with_the_interpreter():
    script = """
from types import SimpleNamespace
import grain, numpy
from training import parallel, runs

batches = grain.MapDataset.range(10**9).map(
    lambda i: {"number": numpy.full(1, i), "work": numpy.full(1, sum(range(10**5)))}
)
feed = runs.Feed(batches, 1, is_whole=False)
job = SimpleNamespace(
    plan=SimpleNamespace(mesh=parallel.make_mesh(1)),
    phases=(runs.Phase(0, feed, 0.0),),
    phase=lambda step: 0,
    batch=lambda step: batches[step],
    total_steps=10**9,
    run=SimpleNamespace(data_threads=2),
)
ahead = runs.device_batches(job, 0, {0: runs.Programs(None, None, 1)})
print(*next(ahead)["number"], *next(ahead)["number"])
"""
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert (process.returncode, process.stdout) == (0, "0 1\n"), process.stderr
    assert "Traceback" not in process.stderr
