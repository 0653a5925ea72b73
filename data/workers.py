"""Who writes shards beside this process: processes of its machine, a Ray cluster."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from data.shards import THIS_PROCESS, Workers
from errors import UserError


@contextmanager
def process_workers(count: int) -> Iterator[Workers]:
    """Processes of this machine; with one it is this process.

    Raises:
      UserError: one of them was killed.
    """
    if count == 1:
        yield THIS_PROCESS
        return
    # Not forked: the libraries that are loaded here have threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, initializer=_start_process)
    try:
        yield Workers(count, pool.submit)
    except BrokenProcessPool as error:
        raise UserError(
            f"one of the {count} processes that write shards was killed, which happens "
            "where memory runs out. The finished shards are kept: run again with a "
            f"smaller --processes={count // 2}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process has one core to itself
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()  # returns also where it was killed
    os._exit(1)


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
    remote = functools.cache(ray.remote)

    def submit(function: object, *arguments: object, **settings: object) -> Future:
        return remote(function).remote(*arguments, **settings).future()

    try:
        yield Workers(int(ray.cluster_resources()["CPU"]), submit)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a task of the Ray cluster was lost, and its retries as well: {error}. "
            "The finished shards are kept: run the same line again"
        ) from error
    finally:
        ray.shutdown()
