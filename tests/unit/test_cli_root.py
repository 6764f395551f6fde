from __future__ import annotations

import json
import re
import shlex
import sys
from importlib.util import find_spec

import click
import pytest

from balsam_core import __version__, errors
from balsam_core.cli import main, root
from balsam_core.cli.command import Command, Group, Session

COMMANDS = [name for name in root.COMMANDS if find_spec(f"balsam_core.cli.commands.{name}")]


def real(name):
    found = root.root.get_command(click.Context(root.root), name)
    assert found is not None
    return found


def leaves(name):
    found = real(name)
    return list(found.commands.values()) if isinstance(found, click.Group) else [found]


def fail_with(monkeypatch, error):
    @click.command()
    def failing():
        raise error

    monkeypatch.setattr(root.Root, "get_command", lambda *_: failing)


def test_every_command_is_there():
    assert list(root.COMMANDS) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_the_commands_say(name):
    found = real(name)
    assert found.name == name
    assert (found.help or "").split("\n", 1)[0] == root.COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options_and_explained_options_of_its_own(name):
    assert isinstance(real(name), Command | Group)
    for leaf in leaves(name):
        assert isinstance(leaf, Command)
        assert leaf.examples
        options = [option for option in leaf.params if isinstance(option, click.Option)]
        assert {"--db", "--output", "--verbose"} <= {name for option in options for name in option.opts}
        assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name):
    for example in [line for leaf in leaves(name) for line in leaf.examples]:
        for text in re.findall(r"(?:^|\| |=\S+ )balsam ([^|]*)", example):
            words = shlex.split(text)
            parser = real(words.pop(0))
            if isinstance(parser, click.Group):
                parser = parser.commands[words.pop(0)]
            parser.make_context("balsam", words, obj=Session()).close()


def test_help_lists_the_commands_without_loading_them(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("balsam_core.cli.commands.")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, sentence in root.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(sentence)}$", out, re.MULTILINE)
        assert f"balsam_core.cli.commands.{name}" not in sys.modules


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"balsam {__version__}\n"


@pytest.mark.parametrize("error", list(errors._BY_CODE.values()))
def test_an_error_is_one_line_and_its_own_exit_code(error, capsys, monkeypatch):
    fail_with(monkeypatch, error("job 'a\nb\x1b[31m' is\nwrong"))
    assert main(["ls"]) == error.exit_code
    assert capsys.readouterr() == ("", "Error: job 'a b\\x1b[31m' is wrong\n")


def test_exit_codes_collide_with_no_other():
    taken = {0, 1, 2, 130, 141}
    assert taken.isdisjoint({kind.exit_code for kind in errors._BY_CODE.values()})


@pytest.mark.parametrize("words", [["-o", "json", "ls"], ["--output=jsonl", "ls"], ["-ojson", "ls"]])
def test_in_json_mode_an_error_is_a_json_object_on_stderr(words, capsys, monkeypatch):
    fail_with(monkeypatch, errors.NotFound("there is no job 'é\n'"))
    assert main(words) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {"error": {"code": "not-found", "message": "there is no job 'é '", "exit_code": 3}}


def test_a_wrong_command_line_is_json_too_whatever_is_wrong(capsys, monkeypatch):
    for words in (
        ["ls", "--limit", "-1", "-o", "json"],
        ["-o", "json", "nonsense"],
        ["ls", "--nonsense", "--output=json"],
    ):
        assert main(words) == 2
        assert json.loads(capsys.readouterr().err)["error"]["code"] == "usage"
    monkeypatch.setenv("BALSAM_OUTPUT", "json")
    assert main(["nonsense"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["exit_code"] == 2


def test_an_unexpected_error_names_itself_and_advises(capsys, monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("oh"))
    assert main(["ls"]) == 1
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.startswith("Error: unexpected ZeroDivisionError: oh")
    assert "-v" in err


@pytest.mark.parametrize("how", ["option", "variable"])
def test_tracebacks_are_shown_on_request(how, capsys, monkeypatch):
    fail_with(monkeypatch, errors.Conflict("taken"))
    if how == "variable":
        monkeypatch.setenv("BALSAM_DEBUG", "1")
    assert main(["-v", "ls"] if how == "option" else ["ls"]) == 4
    _, err = capsys.readouterr()
    assert "Traceback" in err
    assert err.endswith("Error: taken\n")


def test_errors_of_the_system_are_one_line(capsys, monkeypatch):
    fail_with(monkeypatch, PermissionError(13, "Permission denied", "/some/file"))
    assert main(["ls"]) == 1
    assert capsys.readouterr().err == "Error: '/some/file': permission denied\n"


def test_interruption_is_quiet(capsys, monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["ls"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_giant_message_is_shortened(capsys, monkeypatch):
    fail_with(monkeypatch, errors.InvalidInput("x" * 1_000_000))
    assert main(["ls"]) == 5
    assert len(capsys.readouterr().err) < 3_000


@pytest.mark.parametrize(
    ("wrong", "meant"), [("stauts", "status"), ("launchr", "launcher"), ("lss", "ls"), ("plugin", "plugins")]
)
def test_a_wrong_command_brings_up_what_may_be_meant(wrong, meant, capsys):
    assert main([wrong]) == 2
    assert f"did you mean {meant}" in capsys.readouterr().err


def test_no_command_at_all_shows_the_help_and_is_an_error(capsys):
    for words in ([], ["plugins"], ["config"]):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Usage: balsam")
