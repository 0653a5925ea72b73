"""ELMo, GPT, BERT and the project's own family both ways, on the same text.

    python sweep.py --sweep=configs/sweeps/families.py:TEXT,PAIRS,TASK
        --workdir=sweeps/families

Each has 4.2 to 4.4 million parameters and fifteen minutes of updates on TEXT. Then it
is scored on PAIRS, a file or folder of minimal pairs, and fine-tuned from 1,000 labels
of TASK_train.tsv.gz, held-out TASK_dev.tsv.gz, measured on TASK_test.tsv.gz; each as
its config and configs/finetune/topic.py have it.
"""

from configs.sweeps import Stage, Sweep

# What makes them of one size: that of bert_mini, 4,311,808.
SIZES = {
    "elmo_mini": {"model.vocab_size": 14_000},
    "gpt_mini": {"model.vocab_size": 4096, "data.tokenizer.vocab_size": 4096},
    "bert_mini": {},
    "foreword_causal": {},
    "foreword_masked": {},
}
WIDE = {"num_layers": 4, "head_dim": 64, "hidden_size": 256, "ffn_size": 1024}


def get_sweep(argument: str) -> Sweep:
    text, pairs, task = argument.split(",")
    trained = []
    for name, sizes in SIZES.items():
        wide = WIDE if name.startswith("foreword") else {}
        settings = {f"model.{key}": value for key, value in wide.items()} | sizes
        settings |= {"data.corpus": text, "data.heldout_tokens": 200_000}
        trained.append(Stage("train", f"configs/{name}.py", (settings,)))
    labels = {
        "data.train": f"{task}_train.tsv.gz",
        "data.eval": f"{task}_dev.tsv.gz",
        "data.test": f"{task}_test.tsv.gz",
        "data.train_examples": 1000,
        "optim.epochs": 6.0,
        "optim.learning_rate": 3e-4,
    }
    return Sweep(
        stages=(
            tuple(trained),
            (
                Stage("score", "pairs", ({"input": pairs},)),
                Stage("finetune", "configs/finetune/topic.py", (labels,)),
            ),
        ),
        seeds=(0,),
        metrics=("score/accuracy", "test/accuracy"),
        budget="900 seconds",
    )
