"""Logs: one JSON object a line, on standard error."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog


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
