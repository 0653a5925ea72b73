"""Raw text -> tokenizer and memory-mapped token shards.

`python prepare.py --config=configs/bert_mini.py` does this alone, for a large corpus;
`train.py` calls the same functions for what is not there yet. Shards are written by
`--processes` on this machine, or with `--ray=ADDRESS` by the machines of a Ray cluster.
These need the checkout, its environment and the folder of the shards (the cache, or
`data.shards`) at the same paths, as a shared file system has them. The text is read by
this process alone, tens of megabytes a second; it hands out chunks of it. The folder
has all that training needs: with `data.shards` it goes to another machine alone.
"""

import configs
import errors
from data import shards
from data.workers import cores, process_workers, ray_workers
from pretraining.corpus import prepare


def main(argv: list[str]) -> int:
    flags = configs.parse(argv, "prepare.py")
    count = flags.processes or cores()
    started = ray_workers(flags.ray) if flags.ray else process_workers(count)
    with started as workers:
        tokenizer, folder = prepare(flags.config, workers)
    train, heldout = (shards.open_shards(folder, s) for s in ("train", "heldout"))
    print(
        f"{train.num_tokens:,} tokens for training, {heldout.num_tokens:,} held out, "
        f"vocabulary {tokenizer.vocab_size:,}, in {folder}"
    )
    return 0


if __name__ == "__main__":
    errors.run(main)
