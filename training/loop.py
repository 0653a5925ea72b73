"""The loop: updates, held-out evaluations, checkpoints, signals, a progress bar."""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from errors import UserError
from training import costs
from training.checkpoints import Checkpoints
from training.metrics import MetricsWriter
from training.parallel import Agreement
from training.step import Term, TrainState

REPEAT_SECONDS = 2.0  # within which a signal is one that was sent to several


class StopSignal:
    """Within it, a first SIGTERM or Ctrl-C only sets `received`; a second one acts.

    What comes within `REPEAT_SECONDS` is the first one again: a signal to a process
    group reaches this process, and its launcher (`uv run`, `timeout`) passes it on.
    Of several processes each keeps what it noticed until all `agree`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._noticed = 0
        self._waits = False
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
        if self._waits:
            return
        if self._noticed:
            self.__exit__()
            signal.raise_signal(number)
            return
        self._noticed, self._waits = number, True
        if jax.process_count() == 1:
            self.received = number
        tqdm.write(
            f"{signal.Signals(number).name}: saving, then leaving (again: at once)",
            file=sys.stderr,
        )
        # Asleep, since Python would notice a repeat only after what computes or saves,
        # and then too late to tell it from a second wish.
        time.sleep(REPEAT_SECONDS)
        self._waits = False

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
    train_step: Callable[[int], Callable[..., tuple[TrainState, dict]]],
    evaluate: Callable[[Any], dict[str, float] | None],
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    key: Any,
    stop: StopSignal,
    total_steps: int,
    work: Callable[[int, int], costs.Work],
    log_every_steps: int,
    eval_every_steps: int,
    save_every_minutes: float,
    criterion: Callable[[dict[str, float]], float],
    patience: int,
    weights_kept: Mapping[int, tuple[str, ...]],
) -> TrainState:
    """Trains from `state.step` to `total_steps`, or until `stop` receives a signal.

    `batches` starts at `state.step`. The metrics of an update are fetched while the
    next one runs, and looked at before anything is saved, so that no checkpoint ever
    holds a state after a loss that is not finite. A state is saved before it is
    evaluated; the weights with the lowest `criterion` are kept beside, and those after
    some updates under the names that `weights_kept` gives them. After `patience`
    evaluations in a row without a new lowest one training stops early; 0 never does.
    `train_step(step)` is the program of an update, `(state, batch, key)` -> state and
    metrics; `work(first, last)` what updates first .. last-1 are.

    Raises:
      UserError: the loss or the gradient norm is not finite.
    """
    step = int(state.step)
    pending: tuple[int, dict, dict] | None = None
    bar = tqdm(
        total=total_steps,
        initial=step,
        unit="step",
        disable=writer.watch is not None or None,  # None: where there is no terminal
    )
    timer = _Timer(step)
    last_save = time.monotonic()
    history = {at: criterion(values) for at, values in writer.evaluations.items()}

    def record() -> None:
        nonlocal pending
        if pending is None:
            return
        at, found, batch = pending
        pending, metrics = None, {k: float(v) for k, v in found.items()}
        check_finite(at, metrics, checkpoints)
        if is_logged(at, total_steps, log_every_steps):
            since, seconds, metrics["input_wait"] = timer.look(at)
            metrics |= speed(work, since, at, seconds, batch)
            writer.write(at, {f"train/{k}": v for k, v in metrics.items()})
            show(
                bar,
                at,
                metrics,
                work(at, total_steps).tokens,
                prints=writer.watch is None,
            )

    def evaluate_and_keep() -> None:
        values = evaluate(state.params)
        if values is None:
            return
        if step not in history:
            writer.write(step, {f"eval/{k}": v for k, v in values.items()})
        history[step] = criterion(values)
        checkpoints.keep_best(state.params, step, history[step])
        bar.write(
            f"step {step}: held-out "
            + ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        )

    def due() -> bool:
        return step > 0 and evaluation_due(step, total_steps, eval_every_steps)

    if due() and is_missing(step, history, checkpoints):
        evaluate_and_keep()
    while step < total_steps and not (stop.received or is_exhausted(history, patience)):
        with timer.waiting():
            batch = next(batches)
        state, metrics = train_step(step)(state, batch, key)
        step += 1
        bar.update()
        record()
        pending = (step, metrics, batch)
        save_due = stop.agree(time.monotonic() - last_save > save_every_minutes * 60)
        if not (due() or save_due or stop.received or step in weights_kept):
            continue
        record()
        with timer.paused():
            checkpoints.keep(state.params, step, weights_kept.get(step, ()))
            checkpoints.save(state)
            if due():
                evaluate_and_keep()
            last_save = time.monotonic()
    bar.close()
    checkpoints.save(state)
    checkpoints.wait()
    return state


def speed(
    work: Callable[[int, int], costs.Work],
    first: int,
    last: int,
    seconds: float,
    batch: dict,
) -> dict[str, float]:
    """Of updates first .. last-1, of which `batch` is the last one's."""
    parts = [batch] if "segment_ids" in batch else [*batch.values()]
    useful = sum(int((part["segment_ids"] > 0).sum()) for part in parts)
    share = useful / work(last - 1, last).tokens
    return costs.throughput(work(first, last), seconds, share)


def show(
    bar: tqdm, step: int, metrics: dict[str, float], tokens_left: int, *, prints: bool
) -> None:
    """In the progress bar, or as a line where there is no terminal."""
    seconds_left = tokens_left / metrics["tokens_per_second"]
    shown = f"loss {metrics['loss']:.3f}, {metrics['tokens_per_second']:,.0f} tokens/s"
    bar.set_postfix_str(shown)
    if bar.disable and prints:
        print(
            f"step {step}/{bar.total}  {shown}, {seconds_left / 60:.1f} minutes left",
            flush=True,
        )


def is_logged(step: int, total_steps: int, every: int) -> bool:
    """Every so many updates, and before the first of them at the powers of two, for
    what happens in a warm-up."""
    is_early = step < every and step.bit_count() == 1
    return is_early or step % every == 0 or step == total_steps


def evaluation_due(step: int, total_steps: int, every: int) -> bool:
    """At the end, and at multiples of `every` that lie half of it before."""
    left = total_steps - step
    return left == 0 or (step % every == 0 and 2 * left >= every)


def is_missing(step: int, history: dict[int, float], checkpoints: Checkpoints) -> bool:
    """Whether a run ended between a step, its evaluation and its best weights."""
    return history.get(step, -math.inf) < checkpoints.best_value


def is_over(
    step: int,
    history: dict[int, float],
    checkpoints: Checkpoints,
    *,
    total_steps: int,
    eval_every_steps: int,
    patience: int,
) -> bool:
    """Whether nothing is left to train, and nothing to evaluate."""
    due = step > 0 and evaluation_due(step, total_steps, eval_every_steps)
    if due and is_missing(step, history, checkpoints):
        return False
    return step >= total_steps or is_exhausted(history, patience)


def is_exhausted(history: dict[int, float], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no new lowest; never with 0.

    `history` is step -> criterion, in order; NaN is no new lowest.
    """
    best = int(np.nanargmin([np.inf, *history.values()]))  # counted from 1
    return 0 < patience <= len(history) - best


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

    def look(self, step: int) -> tuple[int, float, float]:
        """(step of the last look, seconds since, share of them that batches were
        waited for)."""
        now = time.monotonic()
        elapsed = now - self._start
        found = self._step, elapsed, self._waited / elapsed
        self._step, self._start, self._waited = step, now, 0.0
        return found

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
