"""How a command ends: exit codes, and one line of what happened and one of what to do, on stderr.

0 ok   1 our own bug   2 usage   3 unreachable   4 refused   5 integrity failure   130 interrupted
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from tidegate_wire.errors import TidegateError

EXIT_INTERRUPTED: Final = 130
"""What a shell reports for a program that Ctrl-C ended."""


def say(line: str) -> None:
    """One line of talk, on stderr; stdout belongs to data."""
    typer.echo(line, err=True)


@contextmanager
def failures_reported(*, debug: bool, prints_data: bool = False) -> Iterator[None]:
    """Turn the errors that people may see into their lines and exit code; our own bugs keep their traceback.

    With `prints_data`, a closed stdout is no error: whoever read our output has seen enough.
    """
    try:
        yield
    except KeyboardInterrupt:
        _silence_stdout()
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except OSError as error:  # the disk, mostly; what was wrong is in its words, not in our code
        _silence_stdout()
        if prints_data and isinstance(error, BrokenPipeError):
            raise typer.Exit(0) from None
        if debug:
            traceback.print_exception(error, file=sys.stderr)
        say(f"error: {error}")
        raise typer.Exit(1) from None
    except (TidegateError, BaseExceptionGroup) as error:
        failure = _first_failure(error)
        if failure is None:
            raise
        if debug:
            traceback.print_exception(error, file=sys.stderr)
        for line in str(failure).splitlines():
            say(f"error: {line}")
        if failure.hint:
            say(f"hint: {failure.hint}")
        raise typer.Exit(failure.exit_code) from None


def _first_failure(error: BaseException) -> TidegateError | None:
    """The first error for people in what a task group raised; None if it holds a bug of ours as well."""
    if isinstance(error, BaseExceptionGroup):
        failures = [_first_failure(member) for member in error.exceptions]
        return None if None in failures else failures[0]
    return error if isinstance(error, TidegateError) else None


def _silence_stdout() -> None:
    """What is still buffered can't be written either, and must not raise again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
