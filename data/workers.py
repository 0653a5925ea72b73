"""Who writes parts of shards beside this process: processes of its machine, a Ray
cluster."""

import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from data import tokenizers
from data.shards import THIS_PROCESS, Workers, here
from errors import UserError


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def process_workers(count: int, written_here: int = 2) -> Iterator[Workers]:
    """Processes of this machine; with one it is this process.

    Args:
      written_here: parts that this process writes before it starts others, so that
        little text does not wait for them.

    Raises:
      UserError: one of them was killed.
    """
    if count == 1:
        yield THIS_PROCESS
        return
    numbers = itertools.count()

    @functools.cache
    def pool() -> ProcessPoolExecutor:
        # Not forked: the libraries that are loaded here have threads.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(count, context, initializer=_start_process)

    def submit(function: Callable, *arguments: object, **settings: object) -> Future:
        begin = here if next(numbers) < written_here else pool().submit
        return begin(function, *arguments, **settings)

    try:
        yield Workers(count, submit)
    except BrokenProcessPool as error:
        raise UserError(
            f"one of the {count} processes that write shards was killed, which happens "
            "where memory runs out. The finished parts are kept: go on with python "
            f"prepare.py and a smaller --processes={count // 2}"
        ) from error
    finally:
        if pool.cache_info().currsize:
            pool().shutdown(cancel_futures=True)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    os.environ.update(tokenizers.ONE_THREAD)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()  # returns also where it was killed
    os._exit(1)


def _on_one_core(function: Callable, *arguments: object, **settings: object) -> object:
    os.environ.update(tokenizers.ONE_THREAD)
    return function(*arguments, **settings)


@contextmanager
def ray_workers(address: str) -> Iterator[Workers]:
    """Tasks of a Ray cluster, one a core; "local" starts one of this machine alone.

    Raises:
      UserError: Ray is not installed; there is no cluster; its machines fail.
    """
    try:
        import ray  # the extra "cluster"
    except ImportError as error:
        raise UserError(
            "--ray needs the package ray: install the extra, `uv sync --extra cluster` "
            "or `pip install '.[cluster]'`"
        ) from error
    try:
        ray.init(address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--ray={address}: no Ray cluster answers ({str(error).splitlines()[0]}). "
            "Start one with `ray start --head`, or say --ray=local"
        ) from error
    task = ray.remote(_on_one_core)

    def submit(function: Callable, *arguments: object, **settings: object) -> Future:
        return task.remote(function, *arguments, **settings).future()

    try:
        yield Workers(int(ray.cluster_resources()["CPU"]), submit)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a task of the Ray cluster was lost, and its retries as well: {error}. "
            "The finished parts are kept: run the same line again"
        ) from error
    finally:
        ray.shutdown()
