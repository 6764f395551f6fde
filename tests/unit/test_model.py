"""Rules that need no database: states, commands, filters, the codec, the order of an insert."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_core import App, Job, State
from balsam_core.client.inserting import _parents_first
from balsam_core.errors import BalsamError, Corrupt, InvalidInput, NotFound, SchemaMismatch, error_class
from balsam_core.model import calls
from balsam_core.model.codec import decode_call, decode_result, decode_stored, encode, encode_call
from balsam_core.model.command import fill_known, fill_template, placeholders, shell_operator, split
from balsam_core.model.states import ACTIVE, CHILD_END_STATE, END, TRANSITIONS, UNSUCCESSFUL, first_illegal_transition
from balsam_core.model.text import check_document

S = State


def test_every_state_has_transitions_and_the_finished_one_has_none() -> None:
    assert set(TRANSITIONS) == set(State)
    assert TRANSITIONS[State.JOB_FINISHED] == frozenset()
    assert {state for state in State if State.USER_KILLED in TRANSITIONS[state]} == ACTIVE
    assert UNSUCCESSFUL == set(CHILD_END_STATE) == END - {State.JOB_FINISHED}


def test_the_classic_life_of_a_job_is_legal() -> None:
    life = [
        State(name)
        for name in ["READY", "STAGED_IN", "PREPROCESSED", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]
    ]
    assert first_illegal_transition(State.CREATED, life) is None
    assert first_illegal_transition(State.CREATED, life[1:]) == (State.CREATED, State.STAGED_IN)
    assert first_illegal_transition(State.JOB_FINISHED, [State.RUNNING]) == (State.JOB_FINISHED, State.RUNNING)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_parameter_stays_one_word_whatever_it_holds(value: str) -> None:
    words = split("sim.x --x {x} 'a {x} b' {not a name} {}", what="test")
    filled = ["sim.x", "--x", value, f"a {value} b", "{not", "a", "name}", "{}"]
    assert fill_template(words, {"x": value}, what="test") == filled
    assert fill_known(words, {"x": value}) == filled


def test_a_filled_value_is_not_filled_again() -> None:
    assert fill_template(["{a}", "{b}"], {"a": "{b}", "b": 2}, what="test") == ["{b}", "2"]
    assert fill_known(["{a}", "{b}"], {"a": "{b}", "b": 2}) == ["{b}", "2"]


def test_in_a_template_every_name_is_a_placeholder_and_doubled_braces_are_one() -> None:
    assert placeholders(["{a}{b}", "{1}", "{a-b}", "{{c}}", "{{{d}}}"]) == {"a", "b", "d"}
    assert fill_template(["{{a}} {{{a}}} {{}}"], {"a": 1}, what="test") == ["{a} {1} {}"]
    with pytest.raises(InvalidInput, match="'c' is missing"):
        fill_template(["{c}"], {"a": 1}, what="test")


def test_in_an_own_command_only_parameters_are_placeholders() -> None:
    words = ["sh", "-c", "echo ${HOME} {x} {{x}} {y}"]
    assert fill_known(words, {"x": 1}) == ["sh", "-c", "echo ${HOME} 1 {1} {y}"]
    assert fill_known(words, {}) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1.10", "1.10"), (1.5, "1.5"), (7, "7"), (True, "true"), (None, "null"), ([1, "a"], '[1,"a"]'),
        ({"k": 1}, '{"k":1}'), ("", ""), ("it's {x}", "it's {x}"),
    ],
)  # fmt: skip
def test_a_value_is_filled_in_as_text_or_json(value: object, text: str) -> None:
    assert fill_template(["-{v}-"], {"v": value}, what="test") == [f"-{text}-"]


def test_conditions_are_data_and_never_truth_values() -> None:
    condition = (Job.state.in_(["FAILED"]) & (Job.priority > 3)) | ~(Job.name == "a")
    sent = calls.CountJobs(where=condition)
    assert decode_call(calls.CountJobs, encode_call(sent)) == sent
    with pytest.raises(TypeError, match="no truth value"):
        bool(Job.priority > 3)
    assert Job(name="a").name == "a"


def test_calls_have_distinct_names_and_result_types() -> None:
    kinds = [kind for base in (calls.Read, calls.Write) for kind in base.__subclasses__()]
    assert len({kind.operation() for kind in kinds}) == len(kinds) > 20
    for kind in kinds:
        assert kind.result_type() is not None
    assert calls.AddJobs.operation() == "add_jobs"


def test_every_call_has_an_operation() -> None:
    from balsam_core.operations import execution

    execution.operation_of(calls.GetInfo())
    kinds = {kind for base in (calls.Read, calls.Write) for kind in base.__subclasses__()}
    assert set(execution._OPERATIONS) == kinds


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x81\xa4jobs\xc0", encode({"jobs": [], "more": 1}), encode({"jobs": [{"name": 3}]})]
)
def test_nonsense_is_refused_as_a_call(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="add_jobs"):
        decode_call(calls.AddJobs, data)


def test_answers_that_cannot_be_read_are_errors_of_ours() -> None:
    with pytest.raises(SchemaMismatch, match=r"get_jobs .*Expected `str`, got `\w+` - at `\$\[0\]\.name`"):
        decode_result(calls.GetJobs, encode([{"name": None}]))
    with pytest.raises(SchemaMismatch, match="stored error"):
        decode_stored(tuple[str, str], encode([1, "x"]), "a stored error")
    for data in (b"", b"\xc1", b"\x91", b"\x91\x81\xa4name\xa1\xff"):
        with pytest.raises(Corrupt, match="the answer to get_apps is damaged"):
            decode_result(calls.GetApps, data)
    with pytest.raises(Corrupt, match="a stored error is damaged"):
        decode_stored(tuple[str, str], b"\x92\xa1", "a stored error")


def test_objects_that_cannot_travel_are_refused() -> None:
    with pytest.raises(InvalidInput, match="can't be stored"):
        encode_call(calls.AddJobs(jobs=[Job(command="x", parameters={"x": object()})]))


def test_documents_come_back_as_they_went_in_or_are_refused() -> None:
    check_document("data", {"a": [1, -1.5, None, True, "ü"]})
    deep: list[object] = []
    for _ in range(40):
        deep = [deep]
    for wrong in (float("inf"), 2**63, {1: 2}, {"a\0": 1}, object(), deep):
        with pytest.raises(InvalidInput):
            check_document("data", {"x": wrong})


def test_errors_are_found_by_their_code_and_have_an_exit_code() -> None:
    assert error_class("not-found") is NotFound
    assert error_class("of a later version") is BalsamError
    assert error_class("usage").exit_code == 1


@given(st.permutations(range(6)))
def test_parents_come_first_in_any_order_of_the_list(order: list[int]) -> None:
    made = [Job(name=str(number), command="x") for number in range(6)]
    for number, job in enumerate(made):
        job.parents = [made[parent] for parent in range(number) if parent % 2 == number % 2]
    ordered = _parents_first([made[place] for place in order])
    places = {id(job): place for place, job in enumerate(ordered)}
    assert len(places) == 6
    assert all(places[id(parent)] < places[id(job)] for job in made for parent in job.parents)


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("a && b", "&&"), ("a || b", "||"), ("a | b", "|"), ("a > f", ">"), ("a >> f", ">>"), ("a 2>&1", "2>"),
        ("a>f", ">"), ("a < f", "<"), ("a; b", ";"), ("a &", "&"), ("a\nb", "a second line"),
        ("curl http://x/?a=1&b=2", ""), ("a '&&' b", ""), ('sh -c "a > b"', ""), ("sh -c 'a\nb'", ""),
        (r"find . -exec rm {} \;", ""), ("a b\n", ""), ("", ""),
        ("echo $HOME", "$HOME"), ("a x/$NAME.txt", "$NAME"), ("echo $(date -u) b", "$(date -u)"),
        ("echo `date`", "`date`"), ('echo "$HOME"', "$HOME"), ("echo '$HOME'", ""), (r"echo \$HOME", ""),
        (r'echo "\$HOME"', ""), ("sh -c 'echo $HOME'", ""), ('bash -lc "echo $HOME `date`"', ""),
        ('env A=1 /bin/sh -e -c "echo $A"', ""), ("sh run.sh $HOME", "$HOME"), ("awk '{print $1}' f", ""),
        ("echo 5$ a$", ""), ("""echo "it's" $A 'x'""", "$A"),
    ],
)  # fmt: skip
def test_unquoted_operators_of_a_shell_are_found(text: str, operator: str) -> None:
    assert shell_operator(text) == operator


def test_braces_of_a_shell_are_told_unless_a_parameter_fills_them() -> None:
    assert shell_operator("echo ${HOME}", {"x"}) == "${HOME}"
    assert shell_operator("echo ${x} $y", {"x"}) == "$y"
    assert shell_operator("echo ${x}") == "", "a template fills whatever stands in braces"


@pytest.mark.parametrize("text", ['sh -c \'{"a":{"b":{x}}}\'', "a }}", "a {{b}"])
def test_doubled_braces_of_a_template_must_pair(text: str) -> None:
    with pytest.raises(InvalidInput, match="don't pair"):
        App("a", text).check()
    App("a", "awk '{{print {x}}} {y} {z' {} '{{}}'").check()
