from __future__ import annotations

import io

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_core.cli.selectors import SLICE, Selection, _make_conditions, parse
from balsam_core.model.filters import AllOf, AnyOf, Compare


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (["12"], Selection(ids=frozenset({12}))),
        (["1,3"], Selection(ids=frozenset({1, 3}))),
        (["1", "3", "3"], Selection(ids=frozenset({1, 3}))),
        (["12-20"], Selection(ranges=((12, 20),))),
        (["7-7"], Selection(ranges=((7, 7),))),
        (["1,5-6,9"], Selection(ids=frozenset({1, 9}), ranges=((5, 6),))),
        (["last"], Selection(last=True)),
        (["last,4"], Selection(ids=frozenset({4}), last=True)),
        (["all"], Selection(everything=True)),
        (["wf:scan"], Selection(workflows=("scan",))),
        (["wf:a,b-c last"], Selection(workflows=("a,b-c last",))),
        (["9223372036854775807"], Selection(ids=frozenset({2**63 - 1}))),
    ],
)
def test_words_are_understood(words, meaning):
    assert parse(words) == meaning


@pytest.mark.parametrize(
    "word",
    ["", ",", "1,", "abc", "1-", "-5", "5-2", "0", "0-3", "1.5", "+1", "٣", "²", "1 2", "wf:", "9223372036854775808",
     "1-9999999999999999999999", "1" * 10_000, "LAST", "1--2", "1-2-3", "\n", "12\n"],
)  # fmt: skip
def test_other_words_are_one_clear_line(word):
    with pytest.raises(click.UsageError) as caught:
        parse([word])
    message = caught.value.format_message()
    assert "\n" not in message
    assert len(message) < 200


def test_dash_reads_ids_from_stdin_as_ls_writes_them(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("4\n8, 15\n\n16-23\nlast\n"))
    assert parse(["-"]) == Selection(ids=frozenset({4, 8, 15}), ranges=((16, 23),), last=True)


def test_empty_stdin_chooses_nothing(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    selection = parse(["-"])
    assert selection == Selection()
    assert list(_make_conditions(set(), selection)) == []


def test_garbage_on_stdin_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("ID  STATE\n"))
    with pytest.raises(click.UsageError, match="'ID' is no selector"):
        parse(["-"])


def test_a_mixed_choice_is_one_filter_so_that_no_job_counts_twice():
    selection = parse(["1,2", "wf:scan", "5-9"])
    assert list(_make_conditions({1, 2}, selection)) == [
        AnyOf([
            Compare("workflow", "eq", "scan"),
            AllOf([Compare("id", "ge", 5), Compare("id", "le", 9)]),
            Compare("id", "in", [1, 2]),
        ])
    ]  # fmt: skip


@given(st.sets(st.integers(1, 2**63 - 1), max_size=3 * SLICE))
def test_many_ids_are_cut_into_filters_of_bounded_size(ids):
    filters = list(_make_conditions(ids, Selection(ids=frozenset(ids))))
    sizes = [len(one.value) for one in filters if isinstance(one, Compare)]
    assert len(sizes) == len(filters)
    assert all(0 < size <= SLICE for size in sizes)
    assert [job for one in filters if isinstance(one, Compare) for job in one.value] == sorted(ids)
