"""Lengths of a run however they are written, and which examples its phases have."""

import json
from pathlib import Path

import numpy as np
import pytest

import configs
from configs import bert_base, bert_mini, gpt_mini
from data import windows
from errors import UserError
from pretraining.course import course_of, describe_course, weights_kept

ROOT = Path(__file__).parent.parent
COUNT = 20  # examples


def config_of(phases=(), total_steps=40, warmup_steps=4, eval_every_steps=10):
    """Eight rows of 32 tokens an update."""
    config = gpt_mini.get_config("tiny")
    config.data.phases = phases
    config.optim.update(total_steps=total_steps, warmup_steps=warmup_steps)
    config.optim.eval_every_steps = eval_every_steps
    configs.check(config)
    return config


def lengths(*written, phases=()):
    course = course_of(config_of(phases, *written))
    return course[1:], [phase.first for phase in course.phases]


def test_numbers_of_updates_are_what_they_are():
    assert lengths(40, 4, 10) == ((40, 4, 10), [0])


def test_tokens_and_shares_become_updates():
    tokens = 8 * 32
    assert lengths(f"{40 * tokens} tokens", "10%", "25 %") == ((40, 4, 10), [0])
    found = lengths(f"{40 * tokens - 1} tokens", f"{4 * tokens} tokens", "1e3tokens")
    assert found == ((40, 4, 4), [0])
    assert lengths("0.5M tokens", "0%", "0.001%")[0] == (1954, 0, 1)
    assert lengths("1.5B tokens", "1%", "100M tokens")[0] == (5859375, 58594, 390625)
    assert lengths("256K tokens", "1%", "256k tokens")[0] == (1000, 10, 1000)
    assert lengths("1 tokens", "60%", "100%") == ((1, 0, 1), [0])
    assert lengths(3, "0.1%", "100%")[0] == (3, 1, 3)


def test_tokens_are_counted_in_the_phases():
    """Of 256 tokens an update up to the tenth, then of 512, then of 256."""
    phases = ((10, {"batch_size": 16}), ("10240 tokens", {"sequence_length": 16}))
    assert lengths(40, "2560 tokens", 1, phases=phases) == ((40, 10, 1), [0, 10, 25])
    assert lengths(40, "2561 tokens", 1, phases=phases)[0] == (40, 11, 1)
    assert lengths("10496 tokens", 1, 1, phases=phases)[0] == (26, 1, 1)
    course = course_of(config_of(phases))
    assert "40 updates, 14,080 tokens; warm-up 4; held out: every 10, rows of 16" in (
        describe_course(course)
    )
    data = [phase.config.data for phase in course.phases]
    shapes = [(own.batch_size, own.sequence_length) for own in data]
    assert shapes == [(8, 32), (16, 32), (16, 16)]


def test_a_share_of_the_run_that_is_written_in_tokens():
    """Nine updates of 256 tokens, and one of 512, are 2,816."""
    phases = (("90%", {"batch_size": 16}),)
    assert lengths("2816 tokens", 1, 1, phases=phases) == ((10, 1, 1), [0, 9])
    assert lengths("2817 tokens", 1, 1, phases=phases) == ((11, 1, 1), [0, 10])


class Noted:
    """Examples whose batches are what was asked for."""

    def __len__(self):
        return COUNT

    def batch(self, visits):
        drawn = visits.draws.bits(1)[:, 0]
        return {"indices": visits.indices, "drawn": drawn, "epochs": visits.epochs}


def batches_of(course, host_index=0, host_count=1):
    """Those of all updates, in order."""
    ends = [*(phase.first for phase in course.phases[1:]), course.total_steps]
    for phase, end in zip(course.phases, ends, strict=True):
        batches = windows.training_batches(
            Noted(),
            batch_size=phase.config.data.batch_size,
            seed=phase.seed,
            visits_before=phase.visits,
            host_index=host_index,
            host_count=host_count,
        )
        for step in range(phase.first, end):
            yield batches[step - phase.first]


def joined(batches, name):
    return np.concatenate([batch[name] for batch in batches])


def test_each_example_comes_once_an_epoch_across_a_ramp():
    ramp = ((3, {"batch_size": 12}), ("50%", {"batch_size": 16}))
    course = course_of(config_of(ramp, total_steps=10))
    batches = [*batches_of(course)]
    assert [len(batch["indices"]) for batch in batches] == [8] * 3 + [12] * 2 + [16] * 5
    visits = joined(batches, "indices")
    assert len(visits) == 128
    for epoch in range(128 // COUNT):
        one = visits[epoch * COUNT : (epoch + 1) * COUNT]
        assert sorted(one) == [*range(COUNT)]
    constant = windows.training_batches(Noted(), batch_size=128, seed=0)[0]
    for name, array in constant.items():
        np.testing.assert_array_equal(joined(batches, name), array)


def test_rows_of_another_length_are_visited_anew_and_drawn_otherwise():
    phases = ((5, {"sequence_length": 16}), (10, {"sequence_length": 32}))
    course = course_of(config_of(phases, total_steps=15))
    assert len({phase.seed for phase in course.phases}) == 3
    assert [phase.visits for phase in course.phases] == [0, 0, 0]
    indices = joined(batches_of(course), "indices").reshape(3, 40)
    drawn = joined(batches_of(course), "drawn")
    assert all(sorted(row) == sorted([*range(COUNT)] * 2) for row in indices)
    assert (indices[0] != indices[1]).any() and (indices[0] != indices[2]).any()
    assert len({*drawn.tolist()}) == len(drawn)


def test_hosts_share_the_batches_of_all_phases():
    phases = ((3, {"batch_size": 12}), (6, {"sequence_length": 16, "batch_size": 4}))
    course = course_of(config_of(phases, total_steps=9))
    hosts = [batches_of(course, host, 4) for host in range(4)]
    for whole, *parts in zip(batches_of(course), *hosts, strict=True):
        for name, array in whole.items():
            np.testing.assert_array_equal(joined(parts, name), array)


def test_more_predictions_alone_are_the_same_examples():
    config = bert_mini.get_config("tiny")
    config.data.phases = ((5, {"max_predictions": 14}),)
    configs.check(config)
    first, second = course_of(config).phases
    assert (second.seed, second.visits) == (first.seed, 40)
    assert second.config.objective.max_predictions == 14


def test_bert_has_its_second_phase():
    course = course_of(bert_base.get_config())
    (_, second) = course.phases
    assert second.first == 900_000
    assert second.config.data.sequence_length == 512
    assert second.config.objective.max_predictions == 80


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (("90%", {"batch_size": 4}), r"holds '90%': each phase is a pair"),
        (((0, {"batch_size": 4}),), r"holds \(0, .*an update from 1 on"),
        ((("soon", {"batch_size": 4}),), r"holds \('soon', "),
        (((5, {"batch_sise": 4}),), r"'batch_sise', .*did you mean batch_size\?"),
        (((5, {"max_predictions": 4}),), "only batch_size, sequence_length can"),
        (((5, {"batch_size": 0}),), "batch_size=0: it must be a whole number, at lea"),
        (((5, {"batch_size": "8"}),), "batch_size='8': it must be a whole number"),
        ((("1M words", {}),), "holds .* each phase is a pair"),
        (((40, {}),), "update 40, not within the 40 updates of optim.total_steps=40"),
        (((9, {}), ("10%", {})), "'10%' on begins at update 4, not after .* at 9"),
        (
            ((5, {"sequence_length": 64}),),
            "from update 5 on: .*=64 is longer than",
        ),
        (((5, {"sequence_length": 4}),), "from update 5 on: .*=4 is too short"),
    ],
)
def test_phases_that_make_no_sense_are_refused(phases, message):
    with pytest.raises(UserError, match=f"^data.phases.*{message}"):
        config_of(phases)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("total_steps", "10%", "at least 1, or a text such as '300M tokens'$"),
        ("total_steps", "0 tokens", "at least 1, or a text such as '300M tokens'$"),
        ("total_steps", "300m tokens", "a whole number, at least 1, or a text such"),
        ("total_steps", 1.5, "a whole number, at least 1, or a text such"),
        ("warmup_steps", "tenth", "such as '300M tokens' or '10%'$"),
        ("warmup_steps", "101%", "such as '300M tokens' or '10%'$"),
        ("eval_every_steps", "0%", "such as '300M tokens' or '10%'$"),
        ("warmup_steps", "1M tokens", r"less than .*\(3,907 of 40 updates\)"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(name, value, message):
    found = f"^optim.{name}='?{value}'? must be .*{message}"
    with pytest.raises(UserError, match=found):
        config_of(**{name: value})


def test_weights_are_kept_after_words_and_other_lengths():
    """Of 100 words an update up to the tenth, then of 50."""
    course = course_of(config_of(((10, {"sequence_length": 16}),)))
    written = ("1000 words", "1001 words", "0.002M words", 11, "2816 tokens", "100%")
    assert weights_kept(course, lambda: (100.0, 50.0), written) == {
        10: ("1000_words",),
        11: ("1001_words", "11"),
        30: ("0.002M_words",),
        12: ("2816_tokens",),
        40: ("100%",),
    }
    with pytest.raises(UserError, match="'3k words', which is update 50, but the run "):
        weights_kept(course, lambda: (100.0, 50.0), ("3k words",))


@pytest.mark.parametrize("length", ["5 chapters", 0, 1.5, "101%", "0%", "0 words"])
def test_weights_are_kept_after_lengths_alone(length):
    config = config_of()
    config.run.keep_weights_at = (length,)
    with pytest.raises(UserError, match="a tuple of updates, or texts such as '3M tok"):
        configs.check(config)


def parse(*overrides):
    line = ["train.py", f"--config={ROOT}/configs/bert_mini.py", *overrides]
    return configs.parse(line, "train.py").config


def test_a_warm_up_that_is_too_long_is_refused_with_the_line_to_type():
    with pytest.raises(UserError, match=r"as by --config\.optim\.warmup_steps=10%$"):
        configs.check(parse("--config.optim.total_steps=100"))
    typed = parse("--config.optim.total_steps=100", "--config.optim.warmup_steps=10%")
    configs.check(typed)
    assert course_of(typed)[1:3] == (100, 10)


def test_a_group_that_warms_up_too_long_is_refused_before_anything_is_read():
    groups = (("embeddings/.*", {"warmup_steps": 100}), (".*", {}))
    config = config_of()
    config.optim.groups = groups
    with pytest.raises(UserError, match=r"warmup_steps=100 .*optim.groups sets"):
        configs.check(config)


def test_phases_and_lengths_are_typed_and_kept_as_typed(tmp_path):
    typed = parse(
        "--config.optim.total_steps=1.5M tokens",
        "--config.optim.eval_every_steps=5%",
        "--config.data.phases=(('90%', {'sequence_length': 128, 'max_predictions': "
        "52}),)",
    )
    configs.check(typed)
    configs.write_run_folder(tmp_path, typed)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["optim"]["total_steps"] == "1.5M tokens"
    assert kept["optim"]["eval_every_steps"] == "5%"
    assert kept["data"]["phases"][0][0] == "90%"
    again = configs.read_config(tmp_path)
    configs.check_same(tmp_path, typed)
    assert course_of(again)[1:] == course_of(typed)[1:]
    assert [phase[:3] for phase in course_of(again).phases] == [
        phase[:3] for phase in course_of(typed).phases
    ]
