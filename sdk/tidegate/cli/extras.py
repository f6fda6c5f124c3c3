"""Telling people which extra to install where an import fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tidegate_wire.errors import ConfigError


@contextmanager
def extra_required(command: str, extra: str) -> Iterator[None]:
    """Around an import: another project's package that is missing is said in one line; ours missing is a bug.

    Raises:
        ConfigError: a package of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("tidegate"):
            raise
        raise ConfigError(
            f"tidegate {command} needs the package {package}, which is not installed: pip install 'tidegate[{extra}]'"
        ) from error
