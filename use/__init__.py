"""What is done with a run: predict.py is the command line of these functions."""

from use.embedding import embed
from use.filling import fill_mask
from use.generation import generate
from use.labelling import predict
from use.run import Run, open_run

__all__ = ["Run", "embed", "fill_mask", "generate", "open_run", "predict"]
