"""The loop: updates, held-out evaluations, checkpoints, signals, a progress bar."""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from errors import UserError
from training.checkpoints import Checkpoints
from training.metrics import MetricsWriter
from training.parallel import Agreement
from training.step import Term, TrainState


class StopSignal:
    """Within it, a first SIGTERM or Ctrl-C only sets `received`; a second one acts.

    Of several processes each keeps what it noticed until all `agree`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._noticed = 0
        self._agreement = Agreement()

    def __enter__(self) -> "StopSignal":
        self._previous = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        self._noticed = number
        if jax.process_count() == 1:
            self.received = number
        signal.signal(number, self._previous[number])
        tqdm.write(
            f"{signal.Signals(number).name}: saving, then leaving (again: at once)",
            file=sys.stderr,
        )

    def agree(self, wish: bool) -> bool:
        """Whether any process wishes; sets `received` where any has noticed a signal.

        All must call it, and all get the same answer at the same call.
        """
        noticed, wished = self._agreement(self._noticed, int(wish))
        self.received = self.received or noticed or None
        return bool(wished)


def sum_terms(terms: list[dict[str, Term]]) -> dict[str, Term]:
    """The terms of several batches added up in float64."""
    return jax.tree.map(
        lambda *values: np.sum(np.asarray(values, np.float64)), *jax.device_get(terms)
    )


def fit(
    state: TrainState,
    batches: Iterator[dict],
    *,
    train_step: Callable[[TrainState, dict, Any], tuple[TrainState, dict]],
    evaluate: Callable[[Any], dict[str, float] | None],
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    key: Any,
    stop: StopSignal,
    total_steps: int,
    throughput: Callable[[float, dict], dict[str, float]],
    log_every_steps: int,
    eval_every_steps: int,
    save_every_minutes: float,
    criterion: Callable[[dict[str, float]], float],
    patience: int,
) -> TrainState:
    """Trains from `state.step` to `total_steps`, or until `stop` receives a signal.

    `batches` starts at `state.step`. The metrics of an update are fetched while the
    next one runs, and looked at before anything is saved, so that no checkpoint ever
    holds a state after a loss that is not finite. The checkpoint whose evaluation has
    the lowest `criterion` is kept. After `patience` evaluations in a row without a new
    lowest one training stops early; 0 never does. `throughput(steps a second, batch)`
    gives the measures of speed that are logged, "tokens_per_second" among them.

    Raises:
      UserError: the loss or the gradient norm is not finite.
    """
    step = int(state.step)
    pending: tuple[int, dict, dict] | None = None
    bar = tqdm(total=total_steps, initial=step, unit="step", disable=None)
    timer = _Timer(step)
    last_save = time.monotonic()
    history = [criterion(values) for values in writer.evaluations]

    def record() -> None:
        nonlocal pending
        if pending is None:
            return
        at, batch = pending[0], pending[2]
        metrics = {k: float(v) for k, v in pending[1].items()}
        pending = None
        check_finite(at, metrics, checkpoints)
        if at % log_every_steps == 0 or at == total_steps:
            steps_per_second, metrics["input_wait"] = timer.look(at)
            metrics |= throughput(steps_per_second, batch)
            writer.write(at, {f"train/{k}": v for k, v in metrics.items()})
            show(bar, at, metrics, (total_steps - at) / steps_per_second)

    def evaluate_and_write() -> float | None:
        values = evaluate(state.params)
        if values is None:
            return None
        writer.write(step, {f"eval/{k}": v for k, v in values.items()})
        shown = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        bar.write(f"step {step}: held-out {shown}")
        history.append(criterion(values))
        return history[-1]

    def evaluation_due() -> bool:
        return step % eval_every_steps == 0 or step == total_steps

    # A signal can come between an update and its evaluation.
    if step > 0 and evaluation_due() and not checkpoints.is_evaluated(step):
        evaluate_and_write()
    while step < total_steps and not (stop.received or is_exhausted(history, patience)):
        with timer.waiting():
            batch = next(batches)
        state, metrics = train_step(state, batch, key)
        step += 1
        bar.update()
        record()
        pending = (step, metrics, batch)
        save_due = stop.agree(time.monotonic() - last_save > save_every_minutes * 60)
        if not (evaluation_due() or save_due or stop.received):
            continue
        record()
        with timer.paused():
            value = evaluate_and_write() if evaluation_due() else None
            checkpoints.save(state, value)
            last_save = time.monotonic()
    bar.close()
    checkpoints.save(state, None)
    checkpoints.wait()
    return state


def show(bar: tqdm, step: int, metrics: dict[str, float], seconds_left: float) -> None:
    """In the progress bar, or as a line where there is no terminal."""
    shown = f"loss {metrics['loss']:.3f}, {metrics['tokens_per_second']:,.0f} tokens/s"
    bar.set_postfix_str(shown)
    if bar.disable:
        print(
            f"step {step}/{bar.total}  {shown}, {seconds_left / 60:.1f} minutes left",
            flush=True,
        )


def is_exhausted(history: list[float], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no new lowest; never with 0."""
    since_best = len(history) - 1 - int(np.argmin(history)) if history else 0
    return 0 < patience <= since_best


def check_finite(
    step: int, metrics: dict[str, float], checkpoints: Checkpoints
) -> None:
    """Raises UserError where the loss or the gradient norm is not finite."""
    loss, norm = metrics["loss"], metrics["grad_norm"]
    if math.isfinite(loss) and math.isfinite(norm):
        return
    checkpoints.wait()
    raise UserError(
        f"step {step}: loss={loss}, gradient norm={norm}, learning rate="
        f"{metrics['learning_rate']:.3g}. Nothing was saved after it; the last good "
        f"checkpoint is of step {checkpoints.latest_step()}. Lower "
        "optim.learning_rate, lengthen its warm-up, or lower optim.clip_norm, in a new "
        "run folder"
    )


class _Timer:
    """What happened since the last look, without the time spent paused."""

    def __init__(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.monotonic(), 0.0

    def look(self, step: int) -> tuple[float, float]:
        """(steps a second, share of the time that batches were waited for)."""
        now = time.monotonic()
        elapsed = now - self._start
        rate, share = (step - self._step) / elapsed, self._waited / elapsed
        self._step, self._start, self._waited = step, now, 0.0
        return rate, share

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._start += time.monotonic() - begin
