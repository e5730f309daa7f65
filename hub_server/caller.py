"""The authenticated caller of one call, as a value."""

import time
from dataclasses import dataclass, replace

from hub_client.v1.options_pb2 import Level, Scope
from hub_server.errors import HubError, Reason

_HUB_WORK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, for which tenant, and until when.

    ``tenant_id`` comes from the credential and nowhere else; it is empty for an operator.
    ``user_id`` is None for a service key that acts for nobody in particular. ``scopes`` are what
    a service key may do, all that they include; None = not a service key. ``deadline`` is a point
    of ``time.monotonic()``.
    """

    tenant_id: str
    level: Level.ValueType
    credential_id: str
    user_id: str | None
    deadline: float
    scopes: frozenset[Scope.ValueType] | None = None

    @classmethod
    def hub(cls, tenant_id: str) -> "Caller":
        """Return the hub itself at work for a tenant, as its background jobs do."""
        deadline = time.monotonic() + _HUB_WORK_SECONDS
        return cls(tenant_id, Level.LEVEL_ADMIN, "", None, deadline)

    def within(self, tenant_id: str) -> "Caller":
        """Return an operator at work for a tenant."""
        return replace(self, tenant_id=tenant_id)

    def acting_as(self, user_id: str) -> "Caller":
        """Return a service key with the rights of a user, as far as its scopes go."""
        return replace(self, level=Level.LEVEL_USER, user_id=user_id)

    @property
    def subject(self) -> str:
        """What page tokens are bound to: the user, or the service key."""
        return self.user_id or self.credential_id

    def acting_for(self, user_id: str) -> str:
        """Return the user this call is for.

        Raises INVALID_FIELD when a service key names no user, and NOT_FOUND when a user token
        names another one: a foreign id answers like an id that does not exist.
        """
        if self.user_id is None:
            if not user_id:
                raise HubError.invalid("user_id", "is required with a service key")
            return user_id
        if user_id not in ("", self.user_id):
            raise HubError(Reason.REASON_NOT_FOUND, resource="user")
        return self.user_id
