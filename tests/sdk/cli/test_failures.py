"""What becomes of an error at the end of a command."""

from __future__ import annotations

import pytest
import typer

from tidegate.cli.failures import failures_reported
from tidegate_wire.errors import ConfigError, IntegrityError, RefusedError, TidegateError, UnreachableError


def exit_code_of(error: BaseException, *, debug: bool = False) -> int:
    with pytest.raises(typer.Exit) as raised, failures_reported(debug=debug):
        raise error
    return int(raised.value.exit_code)


@pytest.mark.parametrize(
    ("kind", "code"),
    [(TidegateError, 1), (ConfigError, 2), (UnreachableError, 3), (RefusedError, 4), (IntegrityError, 5)],
)
def test_each_kind_of_error_has_its_exit_code_and_its_hint(
    kind: type[TidegateError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(kind("it broke", hint="mend it")) == code
    assert capsys.readouterr() == ("", "error: it broke\nhint: mend it\n")


def test_without_a_hint_there_is_no_line_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code_of(ConfigError("first\nsecond"))
    assert capsys.readouterr().err == "error: first\nerror: second\n"


def test_an_error_out_of_task_groups_is_said_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    error = BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [UnreachableError("gone")]), ConfigError("bad")])
    assert exit_code_of(error) == 3
    assert capsys.readouterr().err == "error: gone\n"


def test_a_bug_of_ours_keeps_its_traceback_also_beside_an_error_of_the_world() -> None:
    with pytest.raises(ZeroDivisionError), failures_reported(debug=False):
        raise ZeroDivisionError
    with pytest.raises(BaseExceptionGroup), failures_reported(debug=False):
        raise BaseExceptionGroup("both", [UnreachableError("gone"), ZeroDivisionError()])


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code_of(ConfigError("bad"), debug=True)
    assert "Traceback" in capsys.readouterr().err
