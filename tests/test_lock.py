"""One writer of a run folder, with real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from errors import UserError
from training.lock import one_writer

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from pathlib import Path
from training.lock import one_writer

with one_writer(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_refused_and_a_dead_ones_lock_taken_over(tmp_path, holder):
    message = rf"process {holder.pid} on \S+ since \d{{4}}-.*another --workdir"
    for _ in range(2):  # who was refused changes nothing
        with pytest.raises(UserError, match=message), one_writer(tmp_path):
            raise AssertionError
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with one_writer(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()
        with pytest.raises(UserError, match=f"process {os.getpid()} "):
            one_writer(tmp_path).__enter__()
    with one_writer(tmp_path):
        pass
