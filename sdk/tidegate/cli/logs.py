"""Logs go to stderr: for people on a terminal, one JSON object a line everywhere else."""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

import structlog
from pydantic import BaseModel, Field
from structlog.typing import Processor

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]


class LogSettings(BaseModel):
    """The settings about logs that every part has."""

    log_level: LogLevel = Field("info", description="The least important log line to write.")
    log_format: LogFormat = Field("auto", description="auto writes for people on a terminal, and JSON elsewhere.")


def configure_logs(settings: LogSettings) -> None:
    """Set up structlog, and the standard library's logging (for libraries, from warnings up), on stderr."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    on_terminal = sys.stderr.isatty()
    to_people = settings.log_format == "console" or (settings.log_format == "auto" and on_terminal)
    renderer: Processor
    before_rendering: list[Processor]
    if to_people:
        renderer = structlog.dev.ConsoleRenderer(colors=on_terminal and not os.environ.get("NO_COLOR"))
        before_rendering = []
    else:
        renderer = structlog.processors.JSONRenderer()
        before_rendering = [structlog.processors.format_exc_info]
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*common, *before_rendering, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *before_rendering, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
