"""Examples a second of fine-tuning, beside Hugging Face's Trainer.

    python -m benchmarks.finetuning --train=FILE.tsv --eval=FILE.tsv [--rounds=3]
        [--epochs=2] [--learning_rate=1e-4] [--peer_python=PYTHON]
        [--workdir=runs/finetuning_speed]

Both fine-tune one BERT of 6 layers x 384 (random weights) on the first `--examples`
records (columns `text` and `label`), 32 a batch, in turns: AdamW, a linear rate with
warm-up over a tenth, decay 0.01, clipping at 1, dropout 0.1, float32. The Trainer pads
each batch to its longest text (DataCollatorWithPadding). Rates are of the training loop
alone: without start, compilation and evaluation. The peer needs torch, transformers and
accelerate (extra `peers`), in this Python or in `--peer_python`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

SIZES = {"num_layers": 6, "num_heads": 6, "hidden_size": 384, "ffn_size": 1536}
BATCH_SIZE, MAX_LENGTH = 32, 96


def main() -> None:
    arguments = parse_arguments()
    if arguments.peer:
        return globals()[f"peer_{arguments.peer}"](arguments)
    prepare(arguments)
    ratios = []
    for number in range(arguments.rounds):
        ours = measure_ours(arguments, number)
        peers = measure_peer(arguments)
        ratios.append(ours["examples_per_second"] / peers["examples_per_second"])
        print(f"round {number}: foreword {ours}\n  Trainer {peers}", flush=True)
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"ratio: median {statistics.median(ratios):.2f} ({shown})")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--train")
    parser.add_argument("--eval")
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--workdir", type=Path, default=Path("runs/finetuning_speed"))
    parser.add_argument("--peer", choices=("make", "train"), help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(arguments: argparse.Namespace) -> None:
    """Data, tokenizer, a model of transformers with random weights, and it imported."""
    import convert
    from data import labelled, tokenizer_training, tokenizers

    workdir = arguments.workdir
    (workdir / "peer").mkdir(parents=True)
    train = labelled.read(arguments.train)[: arguments.examples]
    known = {record.fields["label"] for record in train}
    held_out = labelled.read(arguments.eval)[: arguments.examples]
    held_out = [record for record in held_out if record.fields["label"] in known]
    for split, records in (("train", train), ("eval", held_out)):
        lines = [json.dumps(record.fields, ensure_ascii=False) for record in records]
        (workdir / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    texts = [record.fields["text"] for record in labelled.read(arguments.train)]
    tokenizer = tokenizer_training.train(
        texts,
        algorithm="wordpiece",
        vocab_size=8192,
        lowercase=True,
        strip_accents=True,
        unicode_form="NFC",
        special_tokens=tokenizers.BERT_SPECIAL_TOKENS,
        sample_bytes=20_000_000,
    )
    tokenizer.save(workdir / "peer")
    sizes = json.dumps(SIZES | {"vocab_size": tokenizer.vocab_size})
    (workdir / "sizes.json").write_text(sizes)
    run_peer(arguments, "make")
    convert.import_model(str(workdir / "peer"), workdir / "start")


def measure_ours(arguments: argparse.Namespace, number: int) -> dict[str, float]:
    workdir = arguments.workdir
    folder = workdir / f"ours_{number}"
    command = [sys.executable, "finetune.py", "--config=configs/finetune/topic.py"]
    command += [f"--workdir={folder}", f"--config.init_from={workdir / 'start'}"]
    settings = {
        "data.train": workdir / "train.jsonl",
        "data.eval": workdir / "eval.jsonl",
        "data.max_length": MAX_LENGTH,
        "data.batch_size": BATCH_SIZE,
        "optim.epochs": arguments.epochs,
        "optim.eval_every_epochs": arguments.epochs,
        "optim.learning_rate": arguments.learning_rate,
        "optim.groups": '((".*", {}),)',
        "run.log_every_steps": 10,
    }
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    rows = [row for row in rows if "train/loss" in row and row["step"] % 10 == 0]
    rates = [row["train/tokens_per_second"] for row in rows]
    shape = next(line for line in output.splitlines() if line.startswith("batches of"))
    words = shape.split()
    tokens_per_step, steps_per_epoch = int(words[2]) * int(words[5]), float(words[9])
    examples = sum(1 for _ in (workdir / "train.jsonl").open())
    examples_per_step = examples / steps_per_epoch
    results = json.loads((folder / "results.json").read_text())
    return {
        # The first one holds the compilation.
        "examples_per_second": statistics.median(rates[1:])
        / tokens_per_step
        * examples_per_step,
        "accuracy": results["splits"]["eval"]["accuracy"],
    }


def measure_peer(arguments: argparse.Namespace) -> dict[str, float]:
    return json.loads(run_peer(arguments, "train").splitlines()[-1])


def run_peer(arguments: argparse.Namespace, what: str) -> str:
    command = [arguments.peer_python, __file__, f"--peer={what}"]
    for name in ("workdir", "epochs", "learning_rate"):
        command += [f"--{name}={getattr(arguments, name)}"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# In the peer's Python.


def peer_make(arguments: argparse.Namespace) -> None:
    """Saves a BERT with random weights."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    workdir = arguments.workdir
    torch.manual_seed(0)
    sizes = json.loads((workdir / "sizes.json").read_text())
    config = BertConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["ffn_size"],
        max_position_embeddings=128,
    )
    BertForMaskedLM(config).save_pretrained(workdir / "peer")


def peer_train(arguments: argparse.Namespace) -> None:
    """Trains once; prints examples a second and accuracy as the last line."""
    import numpy as np
    from transformers import (
        BertForSequenceClassification,
        DataCollatorWithPadding,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
    )

    workdir = arguments.workdir
    names = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(workdir / "peer" / "tokenizer.json"),
        **{f"{role}_token": piece for role, piece in names.items()},
    )

    def read(split: str) -> list[dict]:
        return [json.loads(line) for line in (workdir / f"{split}.jsonl").open()]

    labels = sorted({record["label"] for record in read("train")})

    def encoded(split: str) -> list[dict]:
        examples = []
        for record in read(split):
            ids = tokenizer(record["text"], add_special_tokens=False)["input_ids"]
            ids = ids[: MAX_LENGTH - 2]
            ids = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
            label = labels.index(record["label"])
            examples.append({"input_ids": ids, "labels": label})
        return examples

    model = BertForSequenceClassification.from_pretrained(
        workdir / "peer", num_labels=len(labels)
    )
    steps = -(-len(read("train")) // BATCH_SIZE) * arguments.epochs
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(workdir / "trainer"),
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            num_train_epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            weight_decay=0.01,
            warmup_steps=round(steps / 10),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=encoded("train"),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    rate = trainer.train().metrics["train_samples_per_second"]
    outputs = trainer.predict(encoded("eval"))
    right = np.argmax(outputs.predictions, axis=-1) == outputs.label_ids
    accuracy = float(np.mean(right))
    print(json.dumps({"examples_per_second": rate, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
