"""Seconds from the command to the first update, and of importing each entry point.

Tokenizer, shards and Python's own compiled modules are there. "cold" has no compiled
program of XLA on disk, "warm" those of the run before. Beside the time on the clock
stands that of all cores together, which other work on the machine does not change much.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENTRY_POINTS = ("train", "finetune", "predict", "prepare", "convert")


def measure(config: str) -> str:
    """A Markdown table; `config` is a file, perhaps with its argument."""
    lines = ["| start-up | seconds | seconds of all cores |", "|---|---|---|"]

    def add(name: str, work: Callable, argument: Any) -> None:
        before, began = cpu_seconds(), time.perf_counter()
        work(argument)
        seconds = time.perf_counter() - began
        lines.append(f"| {name} | {seconds:.1f} | {cpu_seconds() - before:.1f} |")

    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "PYTHONPYCACHEPREFIX": f"{folder}/pycache",
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def import_module(name: str) -> None:
            command = [sys.executable, "-c", f"import {name}"]
            subprocess.run(command, cwd=ROOT, env=environment, check=True)

        def train(run: str) -> None:
            command = [sys.executable, "train.py", f"--config={config}"]
            command += ["--config.run.log_every_steps=1"]
            command += [f"--workdir={folder}/{run}"]
            until_first_step(command, environment)

        prepare = [sys.executable, "prepare.py", f"--config={config}"]
        subprocess.run(
            prepare, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL
        )
        for name in ENTRY_POINTS:
            import_module(name)  # writes Python's compiled modules
            add(f"import {name}", import_module, name)
        add(f"{config}: to the first step, cold", train, "cold")
        add(f"{config}: to the first step, warm", train, "warm")
    return "\n".join(lines)


def until_first_step(command: list[str], environment: dict[str, str]) -> None:
    """Runs the command until it reports its first update."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    else:
        raise RuntimeError(f"{command} ended before its first step")
    process.kill()
    process.wait()


def cpu_seconds() -> float:
    """Of the processes that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
