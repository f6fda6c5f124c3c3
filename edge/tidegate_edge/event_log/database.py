"""One aiosqlite connection, and functions run whole on its thread."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiosqlite

BUSY_TIMEOUT_S: Final = 1.0
"""How long a transaction waits for another process's lock, before the writer says so in the log and tries again."""

_CACHED_STATEMENTS: Final = 128

T = TypeVar("T")


class Database:
    """A connection whose work comes in functions: one hop to its thread and back for a whole transaction.

    Statement by statement, each hop could cost a switch interval of the interpreter lock while the event loop is busy.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, path: Path, *, read_only: bool) -> Database:
        """Connect; creates the file unless `read_only`.

        Raises:
            sqlite3.Error: the file can't be opened.
        """
        connecting = aiosqlite.connect(
            f"file:{quote(str(path))}?mode={'ro' if read_only else 'rwc'}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            cached_statements=_CACHED_STATEMENTS,
        )
        return cls(await connecting)

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on the connection's thread, to its end even if the caller is cancelled."""
        connection: Any = self._connection
        # aiosqlite offers its thread one statement at a time only; this is how it runs each of them.
        work = connection._execute(function, connection._conn)
        result: T = await asyncio.shield(asyncio.ensure_future(work))
        return result

    async def close(self) -> None:
        """End the connection and its thread, which would otherwise keep the process from ending."""
        await asyncio.shield(asyncio.ensure_future(self._connection.close()))
