"""Three rates and two seeds of the small masked model, a minute of updates each.

python sweep.py --sweep=configs/sweeps/rates.py --workdir=sweeps/rates
"""

from configs.sweeps import Stage, Sweep, over


def get_sweep() -> Sweep:
    rates = over("optim.learning_rate", (3e-3, 1e-3, 6e-3))
    return Sweep(
        stages=(Stage("train", "configs/foreword_masked.py", rates),),
        seeds=(0, 1),
        metrics=("eval/masked_loss", "eval/masked_accuracy"),
        budget="60 seconds",
    )
