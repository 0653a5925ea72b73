"""GPT of 4 layers x 256 on the docstrings of this machine.

The block of GPT-2 (pre-LN, residual scaling at init; Radford et al. 2019) at the size
of BERT-Mini, byte-level BPE of 8,192 pieces.

    python train.py --config=configs/gpt_mini.py
"""

from ml_collections import ConfigDict

import configs


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "gpt_mini"
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
            "sequence_length": 128,
            "batch_size": 8,
        }
    )
    config.data.tokenizer = ConfigDict(
        {
            "path": "",  # bring your own; "" trains one as the other lines say
            "algorithm": "byte_bpe",
            "vocab_size": 8192,
            "lowercase": False,
            "strip_accents": False,
            "unicode_form": "none",
            "sample_bytes": 20_000_000,
        }
    )
    config.model = ConfigDict(
        {
            "family": "gpt",
            "vocab_size": 8192,
            "max_positions": 128,
            "num_layers": 4,
            "num_heads": 4,
            "head_dim": 64,
            "hidden_size": 256,
            "ffn_size": 1024,
            "pre_norm": True,
            "activation": "gelu_tanh",
            "norm_epsilon": 1e-5,
            "embedding_dropout": 0.0,  # less than one pass over the text
            "table_dropout": False,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "init_std": 0.02,
            "position_init_std": 0.01,
            "residual_scaling": True,
        }
    )
    config.objective = ConfigDict({"name": "causal_lm"})
    config.optim = ConfigDict(
        {
            "total_steps": 1000,
            "schedule": "cosine",
            "learning_rate": 1e-3,
            "end_learning_rate": 0.0,
            "warmup_steps": 100,
            "adam": "adamw",  # or "bert", "gpt1": as their releases compute it
            "b1": 0.9,
            "b2": 0.95,
            "epsilon": 1e-8,
            "weight_decay": 0.1,
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
            "eval_every_steps": 250,
            "save_every_minutes": 10.0,
        }
    )
    return configs.variant(config, arg)
