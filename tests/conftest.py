"""Eight CPU devices, shapes checked at run time, no silent rank promotion; programs
and bytecode that are compiled once, for all tests and the processes that they start."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if version("jaxlib").startswith("0.10."):  # others may end at a flag they do not know
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

CACHE = Path(__file__).parent.parent / ".pytest_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Nearly all the time is XLA's, here and at the flag above: programs are not optimized.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):  # half of a process's start
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(CACHE / "bytecode")
    sys.dont_write_bytecode = False

from jaxtyping import install_import_hook

# Every annotated shape becomes a check; must run before the packages are imported.
CHECKED = ["models", "objectives", "pretraining", "tasks", "training", "use"]
CHECKED += ["data.draws", "data.shards", "data.windows", "data.masking"]
CHECKED += ["data.labelled", "data.spelling"]
install_import_hook(CHECKED, "beartype.beartype")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

import pytest


@pytest.fixture
def opened():
    """(path of a page) -> what it is in headless Chromium when its scripts have run."""
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]

    def dom(path):
        line = [*command, path.as_uri()]
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    return dom
