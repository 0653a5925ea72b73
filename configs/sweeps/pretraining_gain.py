"""What ten minutes of pre-training gain: docstring to library, from 200 labels.

    python sweep.py --sweep=configs/sweeps/pretraining_gain.py --workdir=sweeps/gain

The same model with its weights and with fresh ones, the same settings and seeds.
"""

from configs.sweeps import Stage, Sweep, over, product


def get_sweep() -> Sweep:
    start = over("load_weights", (True, False))
    labels = over("data.train_examples", (200,))
    rate = over("optim.learning_rate", (3e-4,))
    return Sweep(
        stages=(
            Stage("train", "configs/foreword_masked.py", ({},)),
            Stage(
                "finetune",
                "configs/finetune/python_docs.py",
                product(labels, start, rate),
            ),
        ),
        seeds=(0, 1, 2),
        metrics=("eval/accuracy", "eval/macro_f1"),
        budget="600 seconds",
    )
