"""The table of settings: rows that every config has, and what must fit what.

Families, ways to pre-train and kinds of task bring the rows of their own fields.
"""

from typing import Any

from ml_collections import ConfigDict

from data.corpora import BOUNDARIES
from data.tokenizer_training import ALGORITHMS, UNICODE_FORMS
from data.tokenizers import CASINGS, parse_roles
from models import FAMILIES, PRECISIONS
from models.transformer import REMAT
from pretraining import PRETRAININGS
from pretraining.course import course_of
from settings import NEVER, Rule, Setting
from tasks import KINDS
from training.optimizers import (
    RELEASED_SHAPES,
    SCALED_BY_WARMUP,
    SHAPES,
    group_schedule,
    make_schedule,
    parse_groups,
)

FAMILY = Setting("model.family", str, "One of models/.", choices=FAMILIES)
WAY = Setting(
    "objective.name",
    str,
    "Way to pre-train, one of pretraining/.",
    choices=PRETRAININGS,
)
KIND = Setting("task.kind", str, "One of tasks/.", choices=KINDS)

COMMON = (
    Setting("name", str, "Of the run, whose folder is runs/NAME."),
    Setting("seed", int, "Of fresh weights, order and dropout.", f">=0 <{2**32}"),
    Setting("data.tokenizer.path", str, 'Bring your own; "" learns one.'),
    Setting(
        "data.tokenizer.special_tokens",
        str,
        'Of a brought one, ROLE=PIECE apart by spaces, ROLE= for none; "": as found.',
        older="",
    ),
    Setting(
        "data.tokenizer.casing",
        str,
        "How a brought vocab.txt is read; found: by its pieces.",
        choices=CASINGS,
        older="found",
    ),
    Setting(
        "data.tokenizer.algorithm", str, "Of one that is learnt.", choices=ALGORITHMS
    ),
    Setting("data.tokenizer.lowercase", bool, "Of one that is learnt."),
    Setting(
        "data.tokenizer.strip_accents",
        bool,
        "Of one that is learnt; Hangul stays whole.",
    ),
    Setting(
        "data.tokenizer.unicode_form",
        str,
        "Of one that is learnt.",
        choices=UNICODE_FORMS,
    ),
    Setting(
        "data.tokenizer.sample_bytes", int, "Of text that it is learnt from.", ">=1"
    ),
    FAMILY,
    Setting("model.precision", str, "Of the matrix products.", choices=(*PRECISIONS,)),
    Setting(
        "optim.schedule",
        str,
        "Rise and fall of the rate.",
        choices=SHAPES + RELEASED_SHAPES,
    ),
    Setting("optim.learning_rate", float, "At the peak.", ">=0"),
    Setting("optim.end_learning_rate", float, "Of the last update.", ">=0"),
    Setting(
        "optim.adam",
        str,
        "AdamW, or what a release has.",
        choices=("adamw", "bert", "gpt1", "elmo"),
    ),
    Setting("optim.b1", float, "Decay of Adam's mean.", ">=0 <1"),
    Setting("optim.b2", float, "Of its mean of squares.", ">=0 <1"),
    Setting("optim.epsilon", float, "Added to the root in Adam.", ">=0"),
    Setting("optim.weight_decay", float, "Of each update, times the rate.", ">=0"),
    Setting(
        "optim.no_decay",
        tuple,
        "Patterns of paths without weight decay.",
        items="patterns",
    ),
    Setting(
        "optim.clip_norm", float, "Norm that all gradients are cut to; 0: off.", ">=0"
    ),
    Setting("optim.groups", tuple, "Ordered (pattern of paths, own settings)."),
    Setting("run.mesh.data", int, "Devices, which cut the batch; -1: the rest."),
    Setting("run.mesh.fsdp", int, "Devices that cut the batch and the state."),
    Setting("run.mesh.tensor", int, "Devices that cut the matrices."),
    Setting(
        "run.parallel",
        str,
        "pmap: the whole state on every device.",
        choices=("jit", "pmap"),
    ),
    Setting("run.data_threads", int, "Threads that make batches ahead.", ">=0"),
    Setting(
        "run.micro_batches",
        int,
        "Parts of a batch; 0: as few as fit the memory.",
        ">=0",
    ),
    Setting(
        "run.logit_chunks",
        int,
        "Parts that the logits are computed in.",
        ">=1",
        older=1,
    ),
    Setting(
        "run.remat",
        str,
        "Recomputed: nothing, all but matmuls, all of a block.",
        choices=(*REMAT,),
        older="none",
    ),
    Setting(
        "run.fused_attention",
        bool,
        "By cuDNN: bfloat16 on a GPU, without dropout.",
        older=False,
    ),
    Setting(
        "run.log_every_steps",
        int,
        "Updates between rows of metrics; at first 1, 2, 4, ...",
        ">=1",
    ),
    Setting("run.save_every_minutes", float, "Between checkpoints.", ">=0"),
)
PRETRAINING = (
    *COMMON,
    Setting("init_from", str, "Run whose weights, and tokenizer, to go on from."),
    Setting(
        "data.corpus",
        str,
        "python_docs, pydoc_topics, tfds:NAME, or files: FILE, GLOB, or A,B,...",
    ),
    Setting("data.text_field", str, "Of .jsonl and TFDS, column of tables."),
    Setting(
        "data.document_boundary",
        str,
        "What parts documents in a .txt file.",
        choices=(*BOUNDARIES,),
    ),
    Setting(
        "data.heldout_fraction",
        float,
        "Share of the documents, chosen by content.",
        ">0 <1",
    ),
    Setting(
        "data.heldout_tokens",
        int,
        "Of these, evaluated at most; 0: all.",
        ">=0",
        older=0,
    ),
    Setting(
        "run.keep_weights_at",
        tuple,
        "Lengths after which the weights are kept in WORKDIR/kept, a run folder each.",
        items="lengths",
        older=(),
    ),
    Setting(
        "data.shards",
        str,
        'Folder, a finished one needs no text; "": in the cache.',
    ),
    Setting("data.sequence_length", int, "Tokens of a row.", ">=1"),
    Setting("data.batch_size", int, "Rows of an update.", ">=1"),
    Setting(
        "data.phases",
        tuple,
        "Ordered (first update, batch_size, sequence_length, max_predictions from then "
        "on); held out are rows of the last one, all the time.",
        older=(),
    ),
    Setting("data.tokenizer.vocab_size", int, "Pieces of a learnt one.", ">=1"),
    WAY,
    Setting(
        "optim.total_steps",
        int,
        "Updates of the whole run.",
        ">=1",
        units=("tokens",),
    ),
    Setting(
        "optim.warmup_steps",
        int,
        "Updates in which the rate rises.",
        ">=0",
        units=("tokens", "%"),
    ),
    Setting(
        "optim.eval_every_steps",
        int,
        "Updates between evaluations.",
        ">=1",
        units=("tokens", "%"),
    ),
)
FINETUNING = (
    *COMMON,
    Setting("init_from", str, 'Run folder; "" trains `model` from scratch.'),
    Setting("load_weights", bool, "False: the model of init_from, weights fresh."),
    Setting(
        "allow_missing",
        tuple,
        "Patterns of paths that may be new, or unused.",
        items="patterns",
    ),
    KIND,
    Setting(
        "task.text_columns",
        tuple,
        "Columns of the file; two are a pair.",
        items="texts",
    ),
    Setting("task.label_column", str, "Column of the file."),
    Setting(
        "task.labels",
        tuple,
        "In the order of their ids; (): of the data.",
        items="texts",
    ),
    Setting("task.metric", str, "Whose best weights are kept."),
    Setting("data.train", str, "A labelled file, or tfds:NAME@SPLIT."),
    Setting("data.eval", str, '"" holds out a part of train.'),
    Setting("data.eval_fraction", float, "Share of train that is.", ">=0 <1"),
    Setting("data.test", str, "Predicted at the end, with labels or without."),
    Setting("data.train_examples", int, "So many, drawn by the seed; 0: all.", ">=0"),
    Setting("data.max_length", int, "Pieces of a sequence, in its frame.", ">=1"),
    Setting("data.batch_size", int, "Examples, on average.", ">=1"),
    Setting("data.packed", bool, "Several examples a row."),
    Setting("head.dropout", float, "Of what the head reads.", ">=0 <1"),
    Setting(
        "head.layers",
        str,
        "Of the model that it reads; mix: a learnt mean of all.",
        choices=("last", "mix"),
        older="last",
    ),
    Setting(
        "head.pooling",
        str,
        "Of a text: the token that its model reads out, [CLS] or a decoder's last "
        "(ELMo has the mean), or the mean of all its tokens.",
        choices=("readout", "mean"),
        older="readout",
    ),
    Setting(
        "head.mix_penalty",
        float,
        "Of the squared weights of the mix.",
        ">=0",
        older=0.001,
    ),
    Setting(
        "head.kind",
        str,
        "lstm: one in each direction below its layer.",
        choices=("linear", "lstm"),
        older="linear",
    ),
    Setting("head.size", int, "Of an LSTM of its own.", ">=1", older=256),
    Setting(
        "objective.lm_weight",
        float,
        "Of the auxiliary language model; GPT-1: 0.5.",
        ">=0",
    ),
    Setting(
        "objective.lm_per_sequence",
        bool,
        "A decoder's: mean of sequences (GPT-1's code).",
    ),
    Setting(
        "objective.mask_rate", float, "Of an encoder's, which is a masked one.", ">0 <1"
    ),
    Setting("optim.epochs", float, "Passes over the training examples.", ">0"),
    Setting("optim.eval_every_epochs", float, "Between evaluations.", ">0"),
    Setting(
        "optim.patience",
        int,
        "Evaluations without a new best that end it; 0: never.",
        ">=0",
    ),
    Setting(
        "optim.warmup_fraction",
        float,
        "Share of the updates in which the rate rises.",
        ">=0 <1",
    ),
    Setting("optim.layerwise.decay", float, "Of the rates by layer; 1: none.", ">0"),
    Setting(
        "optim.layerwise.top_exponent", int, "Of the decay, at the top layer.", ">=0"
    ),
    Setting(
        "optim.layerwise.thaw_every",
        int,
        "Updates between thawing layers; 0: all at once.",
        ">=0",
    ),
)


# What must fit what. A rule may also let the one who knows raise its own sentence.


def mesh_sizes(config: ConfigDict) -> str | None:
    for axis, size in config.run.mesh.items():
        if size < 1 and size != -1:
            return f"run.mesh.{axis}={size} must be at least 1, or -1, the rest"
    return None


def groups_are_groups(config: ConfigDict) -> None:
    parse_groups(config.optim.groups)


def only_a_brought_tokenizer_is_told(config: ConfigDict) -> str | None:
    own = config.data.tokenizer
    parse_roles(own.special_tokens)
    for name, default in (("special_tokens", ""), ("casing", "found")):
        if own[name] != default and not (own.path or config.init_from):
            return (
                f"data.tokenizer.{name}={own[name]!r} is of a tokenizer that is "
                "brought: name it (data.tokenizer.path), or leave this out"
            )
    return None


def schedule_fits(config: ConfigDict) -> str | None:
    course, optim = course_of(config), config.optim
    warmup, total = course.warmup_steps, course.total_steps
    if warmup >= total:
        updates = f" ({warmup:,} of {total:,} updates)"
        return (
            f"optim.warmup_steps={optim.warmup_steps} must be less than "
            f"optim.total_steps={optim.total_steps}{updates}: set it lower, as by "
            "--config.optim.warmup_steps=10%"
        )
    schedule = {
        "schedule": optim.schedule,
        "learning_rate": optim.learning_rate,
        "end_learning_rate": optim.end_learning_rate,
        "warmup_steps": warmup,
        "total_steps": total,
    }
    make_schedule(**schedule)
    for group in parse_groups(optim.groups):
        group_schedule(group, schedule)
    return None


def positions_suffice(config: ConfigDict) -> str | None:
    length, most = config.data.sequence_length, config.model.max_positions
    if length > most:
        return (
            f"data.sequence_length={length} is longer than model.max_positions={most}: "
            "lower the one or raise the other"
        )
    return None


def phases_fit(config: ConfigDict) -> str | None:
    for phase in course_of(config).phases[1:]:
        for rule in rules_of(phase.config):
            if sentence := rule(phase.config):
                return f"data.phases, from update {phase.first:,} on: {sentence}"
    return None


def words_suffice(config: ConfigDict) -> str | None:
    tokenizer, most = config.data.tokenizer, config.model.vocab_size
    reads_words = "tokens" in FAMILIES[config.model.family].inputs
    is_learnt = not tokenizer.path and not config.init_from and reads_words
    if is_learnt and tokenizer.vocab_size > most:
        return (
            f"data.tokenizer.vocab_size={tokenizer.vocab_size} is more than "
            f"model.vocab_size={most}: lower the one or raise the other"
        )
    return None


def is_given_texts(config: ConfigDict) -> str | None:
    if not config.data.train:
        return (
            "data.train is empty: name the labelled file, as in "
            "--config.data.train=topics.tsv, and its columns in config.task"
        )
    return None


def holds_out(config: ConfigDict) -> str | None:
    if not config.data.eval and not config.data.eval_fraction:
        return (
            "data.eval is empty, so a part of the training data is held out: "
            "data.eval_fraction=0 must be more than 0"
        )
    return None


def metric_is_measured(config: ConfigDict) -> str | None:
    kind, metric = config.task.kind, config.task.metric
    if metric not in KINDS[kind].metrics:
        return (
            f"task.metric={metric!r}: a task of kind {kind!r} is measured by one of "
            f"{', '.join(KINDS[kind].metrics)}"
        )
    return None


def pools_a_text(config: ConfigDict) -> str | None:
    kind = config.task.kind
    if config.head.pooling == "mean" and KINDS[kind].head.reads == "tokens":
        return (
            f"head.pooling='mean' makes one vector of a text, and a task of kind "
            f"{kind!r} labels its tokens: leave it at --config.head.pooling=readout"
        )
    return None


def schedule_warms_up(config: ConfigDict) -> str | None:
    schedule, fraction = config.optim.schedule, config.optim.warmup_fraction
    if schedule in SCALED_BY_WARMUP and not fraction:
        return (
            f"optim.schedule={schedule!r} is scaled by the warm-up: "
            "optim.warmup_fraction=0 must be more than 0"
        )
    return None


BOTH_RULES = (mesh_sizes, groups_are_groups, only_a_brought_tokenizer_is_told)
PRETRAINING_RULES = (*BOTH_RULES, schedule_fits, positions_suffice, words_suffice)
PRETRAINING_RULES += (phases_fit,)
FINETUNING_RULES = (*BOTH_RULES, is_given_texts, holds_out, metric_is_measured)
FINETUNING_RULES += (pools_a_text, schedule_warms_up)


def rows_of(values: dict[str, Any]) -> dict[str, Setting]:
    """The settings that a config has, by name, for its family, and way or kind.

    Raises:
      UserError: there is no such family, way or kind.
    """
    is_task = KIND.name in values
    for row in (FAMILY, KIND if is_task else WAY):
        row.check_in(values)
    rows = (
        *(FINETUNING if is_task else PRETRAINING),
        *FAMILIES[values[FAMILY.name]].settings,
        *own_rows(values),
    )
    return {row.name: row for row in rows}


def own_rows(values: dict[str, Any]) -> tuple[Setting, ...]:
    """The settings that only the way to pre-train, or the kind of task, reads."""
    if KIND.name in values:
        return KINDS[values[KIND.name]].settings
    return PRETRAININGS[values[WAY.name]].settings


def other_rows(values: dict[str, Any]) -> dict[str, Setting]:
    """The settings of the other kinds of task: a config may have them all."""
    kinds = KINDS.values() if KIND.name in values else ()
    return {row.name: row for kind in kinds for row in kind.settings}


def rules_of(config: ConfigDict) -> tuple[Rule, ...]:
    """What must fit what in a config whose settings are each as they must be."""
    family = FAMILIES[config.model.family]
    if "task" in config:
        return (*FINETUNING_RULES, *family.rules, *KINDS[config.task.kind].rules)
    way = PRETRAININGS[config.objective.name]
    return (*PRETRAINING_RULES, *family.rules, *way.rules)


MOVED = {
    "run.precision": "model.precision",
    "run.eval_every_steps": "optim.eval_every_steps",
}


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that may be older, by name, as they are called today, and
    with those that came after it."""
    values = {MOVED.get(name, name): value for name, value in values.items()}
    pairs = values.pop("objective.next_sentence", None)  # once a switch of masked_lm
    if pairs:
        values["objective.name"] = "next_sentence"
    elif pairs is not None:
        del values["objective.short_seq_prob"], values["objective.random_next_rate"]
    later = {row.name: row.older for row in rows_of(values).values()}
    later = {name: [*x] if isinstance(x, tuple) else x for name, x in later.items()}
    frames = FAMILIES[values[FAMILY.name]].frames.values()
    reads_first = all(frame.readout == "first" for frame in frames)
    if reads_first and "task.null_position" in later:  # there it is the same
        later["task.null_position"] = "readout"
    return {name: older for name, older in later.items() if older is not NEVER} | values
