"""What each part of the recipe gives, at equal time: one change at a time.

    python sweep.py --sweep=configs/sweeps/recipe.py:masked --workdir=sweeps/masked
    python sweep.py --sweep=configs/sweeps/recipe.py:causal,TEXT --workdir=sweeps/causal

Every variant has the updates that fit 240 seconds of this machine. It starts from what
the search of docs/recipe.md started from; TEXT, other than python_docs, is measured on
another part of its documents than those that final figures are made with.
"""

from configs.sweeps import Overrides, Stage, Sweep, over

START = {"model.num_layers": 6, "model.value_residual": False}
MASKS = {"objective.mask_token_rate": 1.0, "objective.random_token_rate": 0.0}


def size(layers: int, heads: int, width: int, inner: int) -> Overrides:
    return {
        "model.num_layers": layers,
        "model.num_heads": heads,
        "model.head_dim": 32,
        "model.hidden_size": width,
        "model.ffn_size": inner,
    }


def rows(number: int, length: int, rate: float) -> Overrides:
    return {
        "data.batch_size": number,
        "data.sequence_length": length,
        "optim.learning_rate": rate,
    }


def hidden(share: float, predictions: int) -> Overrides:
    return {"objective.mask_rate": share, "objective.max_predictions": predictions}


def pieces(number: int) -> Overrides:
    return {"model.vocab_size": number, "data.tokenizer.vocab_size": number}


SHARED = (
    {},
    {"model.value_residual": True},
    {"model.value_residual": True, "model.num_layers": 4},
    *over("model.num_layers", (4, 8)),
    size(4, 6, 192, 768),
    size(4, 8, 256, 1024),
    size(8, 3, 96, 384),
    *over("optim.learning_rate", (2e-3, 5e-3)),
    *over("model.near_radius", (0, 4)),
    *over("model.init_std", (0.02, 0.1)),
    {"model.activation": "gelu_tanh"},
    {"optim.weight_decay": 0.1},
    {"optim.b2": 0.95},
)
WAYS = {
    "masked": (
        hidden(0.15, 10),
        hidden(0.2, 13),
        hidden(0.4, 26),
        {
            "objective.mask_token_rate": 0.8,
            "objective.random_token_rate": 0.1,
        },  # BERT's
        rows(8, 64, 2e-3),
        rows(32, 64, 5e-3),
        rows(8, 128, 3e-3) | hidden(0.3, 40),
        rows(16, 128, 5e-3) | hidden(0.3, 40),
    ),
    "causal": (
        *map(pieces, (1024, 2048, 8192)),
        rows(4, 128, 2e-3),
        rows(16, 128, 5e-3),
        rows(16, 64, 3e-3),
        rows(4, 256, 3e-3) | {"model.max_positions": 256},
    ),
}
METRICS = {
    "masked": ("eval/masked_loss", "eval/masked_accuracy"),
    "causal": ("eval/bits_per_byte",),
}


def get_sweep(argument: str) -> Sweep:
    way, _, text = argument.partition(",")
    fixed = {"data.corpus": text, "data.heldout_fraction": 0.04} if text else {}
    start = START | fixed | (MASKS if way == "masked" else {})
    variants = tuple(start | change for change in (*SHARED, *WAYS[way]))
    return Sweep(
        stages=(Stage("train", f"configs/foreword_{way}.py", variants),),
        seeds=(0,),
        metrics=METRICS[way],
        budget="240 seconds",
    )
