"""Rows as the rules see them, and the checks that every room makes of them."""

from collections.abc import Mapping
from typing import Any

from hub_server.caller import Caller
from hub_server.errors import HubError, Reason

Row = Mapping[Any, Any]
"""One row of a result, by column name."""


def active_user(row: Row | None) -> Row:
    """Return a row that bears ``user_is_active``; None stands for a user who does not exist.

    Raises NOT_FOUND or USER_DISABLED.
    """
    if row is None:
        raise HubError(Reason.REASON_NOT_FOUND, resource="user")
    if not row["user_is_active"]:
        raise HubError(Reason.REASON_USER_DISABLED)
    return row


def owned(caller: Caller, row: Row | None, resource: str) -> Row:
    """Return a resource's row (with ``user_id``, ``user_is_active``) if the caller may see it.

    Raises NOT_FOUND, for another user's as for one that does not exist, or USER_DISABLED.
    """
    if row is None or caller.user_id not in (None, row["user_id"]):
        raise HubError(Reason.REASON_NOT_FOUND, resource=resource)
    return active_user(row)
