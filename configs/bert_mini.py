"""BERT of 4 layers x 256 on the docstrings of this machine: the first thing to run.

Size: BERT-Mini of Turc et al. 2019 (arXiv:1908.08962), vocabulary 4,096. Masked LM
without next sentence prediction (RoBERTa, Liu et al. 2019, 4.2: not needed), documents
packed full. The rest is chosen to learn in few steps: short rows, small batches, much
masked, a larger start than 0.02. With 15 % masked and 0.02 (vocabulary 8,192, 1,600
steps) the held-out loss was 5.97 against a unigram entropy of 6.38.

    python train.py --config=configs/bert_mini.py
"""

from ml_collections import ConfigDict

import configs


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "bert_mini"
    config.seed = 0
    config.init_from = ""  # a run whose weights, and tokenizer, to go on from
    config.data = ConfigDict(
        {
            # python_docs, pydoc_topics, tfds:NAME, or files: FILE, GLOB, or A,B,...
            "corpus": "python_docs",
            "text_field": "text",  # of .jsonl and TFDS, column of .parquet
            "document_boundary": "blank_line",  # or "file", "paragraph"
            "heldout_fraction": 0.02,
            "shards": "",  # their folder; "" is one in the cache, by content
            "sequence_length": 64,
            "batch_size": 16,
        }
    )
    config.data.tokenizer = ConfigDict(
        {
            "path": "",  # bring your own; "" trains one as the other lines say
            "algorithm": "wordpiece",
            "vocab_size": 4096,
            "lowercase": True,
            "strip_accents": True,
            "unicode_form": "NFC",
            "sample_bytes": 20_000_000,
        }
    )
    config.model = ConfigDict(
        {
            "family": "bert",
            "vocab_size": 4096,
            "max_positions": 128,
            "num_token_types": 2,
            "num_layers": 4,
            "num_heads": 4,
            "head_dim": 64,
            "hidden_size": 256,
            "ffn_size": 1024,
            "activation": "gelu_tanh",
            "norm_epsilon": 1e-12,
            "embedding_dropout": 0.0,  # less than one pass over the text: nothing to
            "attention_dropout": 0.0,  # regularise
            "residual_dropout": 0.0,
            "init_std": 0.05,  # about 1 / sqrt(width), as 0.02 is for wider ones
            "truncated_init": True,
            "pooler": False,
            "masked_lm_head": True,
            "next_sentence_head": False,
        }
    )
    config.objective = ConfigDict(
        {
            "name": "masked_lm",
            "mask_rate": 0.4,  # more to learn from each row (Wettig et al. 2023)
            "mask_token_rate": 0.8,
            "random_token_rate": 0.1,  # the rest stays as it is
            "max_predictions": 26,
            "whole_word": False,
            "next_sentence": False,
            "short_seq_prob": 0.1,
            "random_next_rate": 0.5,  # chunks of one sentence come on top
        }
    )
    config.optim = ConfigDict(
        {
            "total_steps": 1500,
            "schedule": "linear",
            "learning_rate": 1.5e-3,
            "end_learning_rate": 0.0,
            "warmup_steps": 150,
            "adam": "adamw",  # or "bert", "gpt1": as their releases compute it
            "b1": 0.9,
            "b2": 0.98,
            "epsilon": 1e-6,
            "weight_decay": 0.01,
            "no_decay": (r".*/bias", r".*/scale"),
            "clip_norm": 1.0,
            "groups": ((".*", {}),),  # ordered (path pattern, own settings)
        }
    )
    config.run = ConfigDict(
        {
            "precision": "float32",  # of the matrix products; or "bfloat16"
            # Devices; -1 is the rest. The batch is cut over data x fsdp, parameters and
            # optimizer over fsdp x tensor.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "parallel": "jit",  # or "pmap": the whole state on every device
            "data_threads": 2,  # that make batches ahead
            "micro_batches": 1,  # 0: as few as fit the memory
            "logit_chunks": 1,  # parts that the logits are computed in, to save memory
            "remat": "none",  # recomputed: "none", all but "matmuls", all of a "block"
            "fused_attention": False,  # by cuDNN: bfloat16 on a GPU, without dropout
            "log_every_steps": 20,
            "eval_every_steps": 400,
            "save_every_minutes": 10.0,
        }
    )
    return configs.variant(config, arg)
