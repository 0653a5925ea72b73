"""BERT-base (Devlin et al. 2019): 12 layers x 768, masked LM and next sentence.

The paper: BooksCorpus and English Wikipedia, 1M steps of 256 sequences, the first 90 %
at 128 tokens and the last 10 % at 512 (80 predictions of a row as in most releases, 20
before); Adam at 1e-4 after 10,000 steps of warm-up, linear to 0; 4 days on 16 TPU
chips; held-out masked-LM perplexity 3.99, next sentence accuracy 97 to 98 %. The batch
is 256 rows all along: the paper does not say, but counts 256 x 512 tokens. Held out
are rows of 512 from the start, so until the second phase with positions not yet learnt.

    python train.py --config=configs/bert_base.py

The default corpus is English Wikipedia, which has to be downloaded. No run at this size
has been measured yet.
"""

from ml_collections import ConfigDict

import configs


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "bert_base"
    config.seed = 0
    config.init_from = ""  # a run whose weights, and tokenizer, to go on from
    config.data = ConfigDict(
        {
            # python_docs, pydoc_topics, tfds:NAME, or files: FILE, GLOB, or A,B,...
            "corpus": "tfds:wikipedia/20230601.en",
            "text_field": "text",  # of .jsonl and TFDS, column of .parquet
            "document_boundary": "blank_line",  # or "file", "paragraph", "line"
            "heldout_fraction": 0.001,
            "heldout_tokens": 1_000_000,  # evaluated at most; 0: all
            "shards": "",  # their folder; "" is one in the cache, by content
            "sequence_length": 128,
            "batch_size": 256,
            # Ordered (first update, what rows and batches have from then on).
            "phases": (("90%", {"sequence_length": 512, "max_predictions": 80}),),
        }
    )
    config.data.tokenizer = ConfigDict(
        {
            "path": "",  # bring your own; "" trains one as the other lines say
            "special_tokens": "",  # of it, such as "end_of_text=<eot>", where not found
            "casing": "found",  # of a brought vocab.txt, or "cased", "uncased"
            "algorithm": "wordpiece",
            "vocab_size": 30_522,
            "lowercase": True,
            "strip_accents": True,
            "unicode_form": "NFC",
            "sample_bytes": 200_000_000,
        }
    )
    config.model = ConfigDict(
        {
            "family": "bert",
            "precision": "bfloat16",  # of the matrix products; or "float32"
            "vocab_size": 30_522,
            "max_positions": 512,
            "num_token_types": 2,
            "num_layers": 12,
            "num_heads": 12,
            "head_dim": 64,
            "hidden_size": 768,
            "ffn_size": 3072,
            "activation": "gelu_erf",
            "norm_epsilon": 1e-12,
            "embedding_dropout": 0.1,
            "attention_dropout": 0.1,
            "residual_dropout": 0.1,
            "init_std": 0.02,
            "truncated_init": True,
            "pooler": True,
            "masked_lm_head": True,
            "next_sentence_head": True,
        }
    )
    config.objective = ConfigDict(
        {
            "name": "next_sentence",  # beside masked LM; "masked_lm": that alone
            "mask_rate": 0.15,
            "mask_token_rate": 0.8,
            "random_token_rate": 0.1,  # the rest stays as it is
            "max_predictions": 20,
            "whole_word": False,
            "short_seq_prob": 0.1,
            "random_next_rate": 0.5,  # chunks of one sentence come on top
        }
    )
    config.optim = ConfigDict(
        {
            "total_steps": configs.amount(1_000_000),  # or "30B tokens"
            "schedule": "linear",
            "learning_rate": 1e-4,
            "end_learning_rate": 0.0,
            "warmup_steps": configs.amount(10_000),  # or "1%", or tokens
            "eval_every_steps": configs.amount(5_000),  # as these
            "adam": "adamw",  # or "bert", "gpt1": as their releases compute it
            "b1": 0.9,
            "b2": 0.999,
            "epsilon": 1e-6,
            "weight_decay": 0.01,
            "no_decay": (r".*/bias", r".*/scale"),
            "clip_norm": 1.0,  # 0: off
            "groups": ((".*", {}),),  # ordered (path pattern, own settings)
        }
    )
    config.run = ConfigDict(
        {
            # Devices; -1 is the rest. The batch is cut over data x fsdp, parameters and
            # optimizer over fsdp x tensor.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "parallel": "jit",  # or "pmap": the whole state on every device
            "data_threads": 2,  # that make batches ahead
            "micro_batches": 1,  # 0: as few as fit the memory
            "logit_chunks": 1,  # parts that the logits are computed in, to save memory
            "remat": "none",  # recomputed: "none", all but "matmuls", all of a "block"
            "fused_attention": False,  # by cuDNN: bfloat16 on a GPU, without dropout
            "log_every_steps": 100,
            "save_every_minutes": 10.0,
            # Such as ("1M words", "300M tokens", "10%"): the weights then, in kept/.
            "keep_weights_at": (),
        }
    )
    return configs.variant(config, arg)
