"""The root of every error that a person may see. Each part's `errors.py` opens with its own tree below these.

TidegateError            what happened, why, and (hint) what to do next
+-- ConfigError          exit code 2: a setting is wrong
+-- UnreachableError     exit code 3: something that is needed does not answer
+-- RefusedError         exit code 4: it answered, and said no
+-- IntegrityError       exit code 5: data is lost, doubled, out of order or damaged
"""

from __future__ import annotations

from typing import ClassVar


class TidegateError(Exception):
    """What happened and why; `hint` says what the person can do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(TidegateError):
    """A setting is wrong: the message names where it stands, its key, and what is allowed."""

    exit_code = 2


class UnreachableError(TidegateError):
    """Something that is needed does not answer."""

    exit_code = 3


class RefusedError(TidegateError):
    """The other side answered, and said no."""

    exit_code = 4


class IntegrityError(TidegateError):
    """Data is lost, doubled, out of order or damaged."""

    exit_code = 5
