"""Logs: one JSON object a line, on standard error."""

import logging
import sys
import traceback
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

_HUB: Final = Path(__file__).parent


def configure_logs(level: str, **facts: object) -> None:
    """Set structlog up for the process; ``level`` is a name such as ``INFO``.

    Every line bears the facts.
    """

    def add_facts(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**event, **facts}

    structlog.configure(
        processors=[
            add_facts,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def causes(error: BaseException) -> Sequence[str]:
    """Return where an error and its causes came from, as ``Type at file:line``.

    Their texts are left out: drivers put values into them, and values are the words of users.
    """
    found: list[str] = []
    link: BaseException | None = error
    while link is not None:
        frames = traceback.extract_tb(link.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_HUB)]
        places = [f" at {Path(frame.filename).name}:{frame.lineno}" for frame in ours or frames]
        state = getattr(link, "sqlstate", None)
        found.append(type(link).__name__ + (f" {state}" if state else "") + "".join(places[-1:]))
        link = link.__cause__ or link.__context__
    return found
