from __future__ import annotations

import csv
import io
import json
import re
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_core.cli.output import Printer
from balsam_core.cli.table import lines
from balsam_core.cli.text import cut, flatten, printable, width

MOMENT = datetime(2026, 11, 24, 1, 2, 3, 456789, tzinfo=UTC)
NAMES = ("id", "name", "at", "data", "note")
ROWS = [(1, "a", MOMENT, {"x": [1]}, None), (20, 'b,"\n', MOMENT, {}, "über 🌲")]


def written(capsysbinary, form, rows=ROWS):
    Printer(form).rows(NAMES, iter(rows), empty="nothing here")
    captured = capsysbinary.readouterr()
    return captured.out.decode(), captured.err.decode()


def test_json_is_an_array_of_objects_with_times_in_utc(capsysbinary):
    out, err = written(capsysbinary, "json")
    assert json.loads(out) == [
        {"id": 1, "name": "a", "at": "2026-11-24T01:02:03.456789Z", "data": {"x": [1]}, "note": None},
        {"id": 20, "name": 'b,"\n', "at": "2026-11-24T01:02:03.456789Z", "data": {}, "note": "über 🌲"},
    ]
    assert err == ""


def test_jsonl_is_an_object_a_line(capsysbinary):
    out, _ = written(capsysbinary, "jsonl")
    assert [json.loads(line)["id"] for line in out.splitlines()] == [1, 20]


def test_csv_comes_back_from_a_csv_reader(capsysbinary):
    out, _ = written(capsysbinary, "csv")
    assert list(csv.reader(io.StringIO(out))) == [
        list(NAMES),
        ["1", "a", "2026-11-24T01:02:03.456789Z", '{"x":[1]}', ""],
        ["20", 'b,"\n', "2026-11-24T01:02:03.456789Z", "{}", "über 🌲"],
    ]


def test_ids_are_the_first_values(capsysbinary):
    assert written(capsysbinary, "ids")[0] == "1\n20\n"


def test_table_escapes_what_could_steer_a_terminal_and_is_not_cut_off_a_terminal(capsysbinary):
    rows: list[tuple[object, ...]] = [(1, "x\ny\x1b[2J\u202e", None, {}, "n" * 10_000)]
    out, _ = written(capsysbinary, "table", rows)
    assert len(out.splitlines()) == 2
    assert "x\\ny\\x1b[2J\\u202e" in out
    assert "n" * 10_000 in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("form", "text"), [("json", "[]\n"), ("jsonl", ""), ("csv", "id,name,at,data,note\n"), ("ids", "")]
)
def test_no_rows_are_still_valid_output(capsysbinary, form, text):
    assert written(capsysbinary, form, []) == (text, "")


def test_no_rows_are_said_in_words_to_a_person(capsysbinary):
    assert written(capsysbinary, "table", []) == ("", "nothing here\n")


def test_rows_are_written_as_they_are_read(capsysbinary):
    read = []

    def source():
        for number in range(5_000):
            read.append(number)
            yield number, "name", MOMENT, {}, None

    for form in ("table", "json", "jsonl", "csv", "ids"):
        read.clear()
        rows = source()
        if form == "table":
            shown = lines(NAMES, rows)
            next(shown)
            assert len(read) < 1_000
        else:
            Printer(form).rows(NAMES, rows)
            assert len(capsysbinary.readouterr().out.splitlines()) >= 5_000


def test_columns_line_up_with_wide_and_combining_characters():
    first, second, third = lines(("id", "name", "state"), [(1, "日本", "READY"), (2, "e\u0301", "READY")])
    place = first.index("STATE") if "STATE" in first else first.index("state")
    assert width(second[: second.index("READY")]) == place == width(third[: third.index("READY")])


def test_a_narrow_terminal_cuts_the_widest_columns():
    rows = [(1, "n" * 300, "READY"), (2, "m", "AWAITING_PARENTS")]
    shown = list(lines(("id", "name", "state"), rows, columns=60))
    assert all(width(line) <= 60 for line in shown)
    assert "…" in shown[1]
    assert "READY" in shown[1]
    assert "AWAITING_PARENTS" in shown[2]


def test_colours_only_where_asked_and_without_moving_columns():
    rows = [(1, "FAILED", "x"), (2, "READY", "y")]
    plain = list(lines(("id", "state", "name"), rows))
    coloured = list(lines(("id", "state", "name"), rows, colours=True))
    assert "\033[31mFAILED\033[0m" in coloured[1]
    assert [line.replace("\033[31m", "").replace("\033[0m", "") for line in coloured] == plain


def test_table_shows_local_time():
    aware = MOMENT.astimezone(timezone(timedelta(hours=5)))
    assert list(lines(("at",), [(MOMENT,)])) == list(lines(("at",), [(aware,)]))


@given(st.text(), st.integers(1, 80))
def test_cut_text_fits_and_escaped_text_is_one_printable_line(text, columns):
    shown = printable(text)
    assert shown.isprintable() or not shown
    assert "\n" not in flatten(text)
    assert width(cut(shown, columns)) <= columns
    if width(shown) <= columns:
        assert cut(shown, columns) == shown


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2), min_size=1))
def test_csv_quotes_whatever_a_reader_could_take_for_the_end_of_a_line(rows):
    stream = io.StringIO(newline="")
    with redirect_stdout(stream):
        Printer("csv").rows(("a", "b"), rows)
    text = stream.getvalue()
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == rows
    unquoted = re.sub(r'"(?:[^"]|"")*"', "", text)
    assert "\r" not in unquoted


def test_a_path_that_is_not_utf8_is_json_that_python_reads_back(capsysbinary):
    path = b"/tmp/\xff".decode(errors="surrogateescape")
    Printer("json").one({"path": path, "at": MOMENT}, "")
    assert json.loads(capsysbinary.readouterr().out) == {"path": path, "at": "2026-11-24T01:02:03.456789Z"}
