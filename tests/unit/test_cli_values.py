from __future__ import annotations

import click
import pytest

from balsam_core.cli.values import json_object, mapping, parameters, patterns, states
from balsam_core.model.command import rendered


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("-3", -3),
        ("1e3", "1e3"),
        ("true", True),
        ("null", None),
        ("[1,2]", [1, 2]),
        ("[1, 2]", "[1, 2]"),
        ('{"a":1}', {"a": 1}),
        ('{"a": 1}', '{"a": 1}'),
        ('"5"', '"5"'),
        ("1.10", "1.10"),
        ("7e10", "7e10"),
        ("1e22", 1e22),
        ("-0", "-0"),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", "9223372036854775808"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("[1,18446744073709551615]", "[1,18446744073709551615]"),
        (" 5", " 5"),
        ("hello", "hello"),
        ("", ""),
        ("007", "007"),
        ("True", "True"),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        ("a=b", "a=b"),
        ("[1,", "[1,"),
        ("12:30", "12:30"),
        ("/path/to", "/path/to"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_parameters_are_json_where_a_command_gets_the_same_text(text, value):
    got = parameters("--param", [f"x={text}"])["x"]
    assert got == value
    assert type(got) is type(value)
    assert rendered(got) == text


@pytest.mark.parametrize("text", ["", "x", "=1", "="])
def test_a_pair_needs_a_key_and_an_equals_sign(text):
    with pytest.raises(click.UsageError, match="KEY=VALUE"):
        mapping("--env", [text])


def test_a_key_given_twice_is_refused():
    with pytest.raises(click.UsageError, match="--env gives 'A' twice"):
        mapping("--env", ["A=1", "A=2"])


@pytest.mark.parametrize("text", ["", "[1]", "1", "{", "{'a': 1}", "null", '{"a": NaN}'])
def test_data_must_be_a_json_object(text):
    with pytest.raises(click.UsageError, match="is no JSON object"):
        json_object("--data", text)


def test_patterns_may_be_words_of_one_option_or_several_options():
    assert patterns("--input-files", ["*.xyz out.*", "'my file'", ""]) == ["*.xyz", "out.*", "my file"]
    with pytest.raises(click.UsageError, match="quotation"):
        patterns("--input-files", ["'a"])


def test_states_are_found_in_any_case_and_wrong_ones_bring_up_the_nearest():
    assert states("--state", ["failed, RUN_TIMEOUT", "Failed"]) == ["FAILED", "RUN_TIMEOUT"]
    with pytest.raises(click.UsageError, match="did you mean JOB_FINISHED"):
        states("--state", ["FINISHED"])
    with pytest.raises(click.UsageError, match="there are: CREATED, AWAITING_PARENTS, READY"):
        states("--state", ["qqq"])
