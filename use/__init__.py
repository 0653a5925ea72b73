"""What is done with a run: predict.py and score.py are the command lines of these
functions."""

from use.embedding import embed
from use.filling import fill_mask
from use.generation import generate
from use.labelling import measure, predict
from use.minimal_pairs import score_pairs
from use.prompts import score_task
from use.reading import perplexity
from use.run import Run, open_run

__all__ = [
    "Run",
    "embed",
    "fill_mask",
    "generate",
    "measure",
    "open_run",
    "perplexity",
    "predict",
    "score_pairs",
    "score_task",
]
