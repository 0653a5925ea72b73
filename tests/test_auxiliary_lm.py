"""The auxiliary language model of fine-tuning: what it predicts, and its loss."""

import grain
import jax
import numpy as np
import pytest
from task_examples import (
    CLS,
    DELIMITER,
    EXTRACT,
    PAIR,
    SEP,
    START,
    TOPIC,
    A,
    B,
    C,
    encode,
    letters,
    one_row,
    records,
)

import models
from configs import gpt_mini
from configs.finetune import glue, topic
from data.masking import Masking
from errors import UserError
from models import heads
from models.transformer import logits
from objectives.cross_entropy import weighted_cross_entropy
from tasks import KINDS, auxiliary_lm, packing
from tests.task_examples import head_of

FIELDS = {
    "bert": topic.get_config("tiny").model.to_dict() | {"precision": "float32"},
    "gpt": gpt_mini.get_config("tiny").model.to_dict() | {"precision": "float32"},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters(tmp_path_factory.mktemp("tokenizer"))


def language_model(tokenizer, family, per_sequence=False):
    return auxiliary_lm.auxiliary_lm(
        models.FAMILIES[family].outputs,
        tokenizer,
        per_sequence=per_sequence,
        mask_rate=0.5,
        longest_row=16,
    )


def test_the_next_token_is_that_of_the_sequence(tokenizer):
    rows = records({"text": "a b", "label": "pos"}, {"text": "c", "label": "neg"})
    row = one_row(encode(rows, TOPIC, tokenizer, "gpt"), length=8, slots=2)
    batch = {name: np.array(array) for name, array in row.items()}
    found = auxiliary_lm.with_next_tokens(batch)
    assert found["tokens"].tolist() == [[START, A, B, EXTRACT, START, C, EXTRACT, 0]]
    assert found["lm_targets"].tolist() == [[A, B, EXTRACT, 0, C, EXTRACT, 0, 0]]
    assert found["lm_weights"].tolist() == [[1, 1, 1, 0, 1, 1, 0, 0]]


def test_sequences_weigh_the_same_in_the_auxiliary_loss_of_gpt1():
    batch = {
        "segment_ids": np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]]),
        "lm_weights": np.float32([[1, 1, 0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]),
    }
    third = 1 / 3
    np.testing.assert_allclose(
        auxiliary_lm.with_sequence_weights(batch)["lm_weights"],
        [[0.5, 0.5, 0, third, third, third, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]],
        rtol=1e-6,
    )
    assert batch["lm_weights"].sum() == 6  # the batch itself is left alone
    assert glue.get_config("rte:gpt1").objective.lm_per_sequence


def test_masks_of_the_auxiliary_loss_are_drawn_by_seed_and_step(tokenizer):
    tokens = np.tile(np.array([[A, B] * 6], np.int32), (3, 1))
    segment_ids = np.array([[1] * 12, [1] * 8 + [0] * 4, [0] * 12], np.int32)
    row = {"tokens": tokens, "segment_ids": segment_ids}
    plain = grain.MapDataset.range(100).map(lambda _: row)
    masking = Masking(
        tokenizer,
        mask_rate=0.25,
        mask_token_rate=1.0,
        random_token_rate=0.0,
        max_predictions=4,
        whole_word=False,
    )
    one, again = (auxiliary_lm.with_masked_tokens(plain, masking, 1) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one[5], again[5])
    assert (one[5]["masked_tokens"] != one[6]["masked_tokens"]).any()
    batch = one[5]
    np.testing.assert_array_equal(batch["tokens"], tokens)  # what the task reads
    assert batch["lm_weights"].sum(axis=1).tolist() == [3, 2, 0]
    for i in range(2):
        places = batch["predict_positions"][i][batch["lm_weights"][i] > 0]
        changed = np.flatnonzero(batch["masked_tokens"][i] != tokens[i])
        assert changed.tolist() == places.tolist()
        count = len(places)
        assert (batch["lm_targets"][i][:count] == tokens[i][places]).all()


def pairs(tokenizer, family):
    fields = {"hypothesis": "e f", "label": "no"}
    rows = [fields | {"premise": "a b c d e f g"[: 2 * i]} for i in range(1, 8)]
    return encode(records(*rows), PAIR, tokenizer, family, labels=("no", "yes"))


@pytest.mark.parametrize("family", FIELDS)
@pytest.mark.parametrize("chunks", [1, 3])
def test_the_loss_is_that_of_the_words(tokenizer, family, chunks):
    examples, lm = pairs(tokenizer, family), language_model(tokenizer, family)
    shape = packing.RowShape(3, 24, 3, True)
    made = lm.added(packing.evaluation_batches(examples, shape), 0)[0]
    ends = (CLS, SEP) if family == "bert" else (START, DELIMITER)
    assert {*ends} <= {*made["tokens"].ravel().tolist()}
    batch = jax.device_put(made)
    model = heads.build(
        FIELDS[family],
        KINDS["classification"].head,
        num_labels=2,
        head=head_of(0.1),
        keep=(lm.output,),
    )
    params = model.init(jax.random.key(0), batch)
    output = model.apply(params, batch)
    loss, weight, metrics = lm.loss(model, params, batch, output, None, chunks)
    read = batch if family == "gpt" else batch | {"tokens": batch["masked_tokens"]}
    expected = weighted_cross_entropy(
        logits(model.apply(params, read)[lm.output]),
        batch["lm_targets"],
        batch["lm_weights"],
    )
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    assert (weight, metrics) == (expected[1], expected[2])
    if family == "gpt":  # all but the last token of each example predict
        assert weight == examples.lengths.sum() - len(examples.encoded)
        return
    key = jax.random.key(1)
    again = model.apply(params, read, jax.random.fold_in(key, 1))
    expected = auxiliary_lm.token_loss(again["masked_lm"], batch, 1)
    dropped = lm.loss(model, params, batch, model.apply(params, batch, key), key, 1)
    np.testing.assert_allclose(dropped[0], expected[0], rtol=1e-6)
    assert dropped[0] != loss


def test_a_family_that_predicts_no_tokens_has_none(tokenizer):
    with pytest.raises(UserError, match=r"predicts no tokens \(it has next_sentence\)"):
        auxiliary_lm.auxiliary_lm(
            ["next_sentence"],
            tokenizer,
            per_sequence=False,
            mask_rate=0.15,
            longest_row=16,
        )
