"""A run in EleutherAI's lm-eval (the extra eval): its tasks, scored by this code.

In Python: `lm_eval.simple_evaluate(model=RunModel(open_run("runs/x")), tasks=[...])`.
"""

import math
from collections.abc import Sequence

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from errors import UserError
from use import generation, measured, prompts, reading, scoring
from use.measured import Measured
from use.prompts import Prompt
from use.run import Run


class RunModel(LM):
    """What lm-eval asks of a model.

    A masked run answers with pseudo-log-likelihoods, and cannot continue a text.
    """

    def __init__(self, run: Run, way: str | None = None, within_word: bool = False):
        super().__init__()
        self.run, self.within_word = run, within_word
        self.way = scoring.way_of(run, way)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of continuations after contexts, and whether each token is the likeliest."""
        asked = []
        for number, request in enumerate(requests, 1):
            context, continuation = request.args
            text = context + continuation
            # Pieces hold the space before a word: what ends a context is not its own.
            begin = len(context.rstrip())
            place = f"{request.task_name}, request {number}"
            asked.append(Prompt(text, begin, len(text), place))
        texts = prompts.encode(self.run, asked, self.way)
        scores = scoring.log_probabilities(self.run, self.way, texts, self.within_word)
        return [*zip(scores.sums.tolist(), scores.greedy.tolist(), strict=True)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of whole texts, through windows that do not overlap."""
        size = reading.window_size(self.run, self.way)
        found = []
        for request in requests:
            (pieces,) = self.run.tokenizer.encode_batch([request.args[0]])
            texts = reading.cut(self.run, self.way, pieces, size, size)
            scores = scoring.log_probabilities(
                self.run, self.way, texts, self.within_word
            )
            found.append(float(scores.sums.sum()))
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The likeliest continuation, up to one of the texts that end it."""
        found = []
        for request in requests:
            context, settings = request.args
            asked = {"max_gen_toks": generation.MAX_TOKENS, "until": []} | settings
            (text,) = generation.generate(
                self.run, context, max_tokens=asked["max_gen_toks"], temperature=0.0
            )
            until = asked["until"]
            for end in [until] if isinstance(until, str) else until:
                text = text.partition(end)[0] if end else text
            found.append(text)
        return found


def evaluate(
    run: Run,
    way: str,
    tasks: Sequence[str],
    *,
    within_word: bool = False,
    include_path: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
) -> dict[str, Measured]:
    """lm-eval's metrics of some tasks, "TASK/METRIC".

    Args:
        include_path: a folder with tasks of one's own.
        shots: examples before a text; None: as many as the task has.
        limit: records of each task.

    Raises:
        UserError: a task that lm-eval does not know.
    """
    manager = TaskManager(include_path=include_path)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise UserError(
            f"lm-eval knows no task {', '.join(unknown)}: `lm-eval ls tasks` lists "
            "them, and those of your own come from --include_path"
        )
    found = lm_eval.simple_evaluate(
        model=RunModel(run, way, within_word),
        tasks=[*tasks],
        num_fewshot=shots,
        limit=limit,
        task_manager=manager,
        log_samples=False,
    )
    numbers = {}
    for task, results in found["results"].items():
        for key, value in results.items():
            metric, _, kind = key.partition(",")
            if kind and not metric.endswith("_stderr"):
                error = results.get(f"{metric}_stderr,{kind}")
                error = error if isinstance(error, float) else math.nan
                name = f"{task}/{metric}" + ("" if kind == "none" else f"/{kind}")
                count = found["n-samples"].get(task, {"effective": 0})["effective"]
                numbers[name] = measured.measured(float(value), error, count)
    return numbers
