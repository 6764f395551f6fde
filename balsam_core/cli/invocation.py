"""One run of the command line: from its arguments to the exit code.

Every error ends here, as one line on stderr (or one JSON object, where JSON was asked for) and an exit code: that of
the error's class, 2 for a wrong command line, 130 for Ctrl-C, 141 where the reader of the output went away.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

import click

from balsam_core.cli.command import FORMATS, OUTPUT_VARIABLE, Session
from balsam_core.cli.stdout import STDOUT, OutputError, discard_output_of
from balsam_core.errors import BalsamError, InvalidInput
from balsam_core.system.shortages import shortage

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = 2
INTERRUPTED = 130  # as a shell counts: 128 + SIGINT
READER_GONE = 141  # 128 + SIGPIPE
COMPLETION_VARIABLE = "_BALSAM_COMPLETE"
LONGEST_MESSAGE = 2000  # characters


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``args`` follow ``balsam``, None for those of this process."""
    _open_standard_streams()
    arguments = list(sys.argv[1:] if args is None else args)
    session = Session(owns_process=args is None)
    code = _run_command(arguments, session)
    try:
        sys.stdout.flush()
    except OSError as err:
        code = _handle_lost_output(err, session, arguments)
    return code


def _run_command(arguments: list[str], session: Session) -> int:
    from balsam_core.cli.root import root

    if os.environ.get(COMPLETION_VARIABLE):  # the shell completes a command line
        root.main(arguments, prog_name="balsam", complete_var=COMPLETION_VARIABLE)
    try:
        # Not root.main(): it prints errors on several lines and handles a closed pipe in its own way.
        with root.make_context("balsam", arguments, obj=session) as ctx:
            code = root.invoke(ctx)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except KeyboardInterrupt as err:
        for note in getattr(err, "__notes__", ()):
            sys.stderr.write(f"Interrupted: {note}\n")
        return INTERRUPTED
    except (BrokenPipeError, OutputError) as err:
        return _handle_lost_output(err, session, arguments)
    except Exception as err:  # noqa: BLE001  (users see tracebacks on request only)
        return _report_error(err, session, arguments, *_describe_exception(err))
    return code if isinstance(code, int) else 0


def _describe_exception(err: Exception) -> tuple[str, str, int]:
    """Return an error's code, message and exit code."""
    match err:
        case BalsamError():
            described = err.code, err.message, err.exit_code
        case click.UsageError():
            command = err.ctx.command_path if err.ctx else "balsam"
            described = "usage", f"{err.format_message().rstrip('.')} (see: {command} --help)", USAGE
        case click.ClickException():
            described = "error", err.format_message(), err.exit_code
        case click.Abort():
            described = "aborted", "aborted", 1
        case _ if lack := shortage(err):
            described = lack.code, lack.message, lack.exit_code
        case OSError():
            described = "system", _describe_os_error(err), 1
        case UnicodeEncodeError():
            described = InvalidInput.code, f"{err.object[:60]!a} is not valid text: use UTF-8", InvalidInput.exit_code
        case MemoryError():
            described = "memory", "there is not enough memory", 1
        case _:
            described = "unexpected", f"unexpected {type(err).__name__}: {err}", 1
    return described


def _report_error(
    err: Exception, session: Session, arguments: list[str], code: str, message: str, exit_code: int
) -> int:
    """Tell the user about an error; returns the exit code."""
    from balsam_core.cli.text import flatten

    if session.verbose and not isinstance(err, click.UsageError):
        import traceback

        traceback.print_exception(err)
    elif code == "unexpected":
        message += "; this is a fault of Balsam: run the same with -v for the traceback and report it"
    line = flatten(message)
    if len(line) > LONGEST_MESSAGE:
        line = f"{line[: LONGEST_MESSAGE // 2]} ... {line[-LONGEST_MESSAGE // 2 :]}"
    if _wants_json(session, arguments):
        import json

        content = {"code": code, "message": line, "exit_code": exit_code}
        line = json.dumps({"error": content}, ensure_ascii=False)
    else:
        line = f"Error: {line}"
    # The output so far first: both may go to one terminal or file.
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{line}\n")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            discard_output_of(stream.fileno())
    return exit_code


def _wants_json(session: Session, arguments: list[str]) -> bool:
    """Whether errors are JSON; if the command line could not be parsed, it is searched for the option."""
    chosen = session.output
    for index, argument in enumerate(arguments):
        if chosen is not None or argument == "--":
            break
        if argument in {"-o", "--output"}:
            chosen = arguments[index + 1] if index + 1 < len(arguments) else None
        elif argument.startswith("--output="):
            chosen = argument.partition("=")[2]
        elif argument.startswith("-o"):
            chosen = argument[2:]
    if chosen not in FORMATS:
        chosen = os.environ.get(OUTPUT_VARIABLE, "").strip()
    return chosen in {"json", "jsonl"}


def _describe_os_error(err: OSError) -> str:
    from balsam_core.system.files import reason

    names = [repr(os.fsdecode(name)) for name in (err.filename, err.filename2) if isinstance(name, (str, bytes))]
    return f"{' and '.join(names) or 'the system reports'}: {reason(err)}"


def _handle_lost_output(err: OSError, session: Session, arguments: list[str]) -> int:
    """Return the exit code for output that can't be written; no message where the reader went away."""
    from balsam_core.system.files import reason

    discard_output_of(STDOUT)
    if err.errno in {errno.EPIPE, errno.ECONNRESET}:
        return READER_GONE
    return _report_error(err, session, arguments, "output", f"the output can't be written: {reason(err)}", 1)


def _open_standard_streams() -> None:
    """Make sure that the three standard streams exist, and that any text can be printed in any locale."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # Else the next opened file gets the descriptor of the closed stream, and output is printed into it.
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
