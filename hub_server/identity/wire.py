"""Rows of identity as messages of the contract, and back."""

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from hub_client.v1 import identity_pb2 as pb
from hub_client.v1.options_pb2 import BudgetPeriod, Scope
from hub_server.convert import enum_from_text, enum_to_text, timestamp_from_pb, timestamp_to_pb
from hub_server.errors import HubError
from hub_server.identity import scopes
from hub_server.identity.service import config_etag, tenant_settings_etag, user_etag
from hub_server.rows import Row

_CONFIG_SETTABLE: Final = (
    "enable_multichat",
    "enable_chat_history",
    "enable_rag",
    "enable_tool",
    "max_sessions",
    "max_tokens",
    "budget_period",
    "preferred_language",
    "timezone",
)
_USER_SETTABLE: Final = ("email", "display_name")


def config_changes(config: pb.UserConfig, mask: FieldMask) -> dict[str, Any]:
    """Return the values to set; None = back to the default. Raises INVALID_FIELD."""
    paths = list(mask.paths)
    if not paths:
        paths = [name for name in _CONFIG_SETTABLE if config.HasField(name)]
    elif paths == ["*"]:
        paths = list(_CONFIG_SETTABLE)
    if not set(paths) <= set(_CONFIG_SETTABLE):
        raise HubError.invalid("update_mask", f"may name: {', '.join(_CONFIG_SETTABLE)}")
    changes = {name: optional(config, name) for name in paths}
    if changes.get("budget_period") is not None:
        period = enum_to_text(BudgetPeriod, config.budget_period)
        changes["budget_period"] = None if period == "unspecified" else period
    return changes


def tenant_settings_changes(settings: pb.TenantSettings, mask: FieldMask) -> dict[str, Any]:
    """Return the values to set; None = back to the default. Raises INVALID_FIELD."""
    if not set(mask.paths) <= {"*", "message_search"} or len(mask.paths) > 1:
        raise HubError.invalid("update_mask", "may name: message_search")
    if not settings.message_search:
        return {"message_search": None} if mask.paths else {}
    return {"message_search": enum_to_text(pb.MessageSearch, settings.message_search)}


def user_changes(user: pb.User, mask: FieldMask) -> dict[str, str]:
    """Return the values to set. Raises INVALID_FIELD."""
    paths = list(mask.paths)
    if paths == ["*"]:
        paths = list(_USER_SETTABLE)
    elif not paths:
        paths = [name for name in _USER_SETTABLE if getattr(user, name)]
    if not set(paths) <= set(_USER_SETTABLE):
        raise HubError.invalid("update_mask", f"may name: {', '.join(_USER_SETTABLE)}")
    if "email" in paths and not user.email:
        raise HubError.invalid("user.email", "is required")
    return {name: getattr(user, name) for name in paths}


def optional(message: Message, name: str) -> Any:
    """Return the value of a field, or None when it is not set."""
    return getattr(message, name) if message.HasField(name) else None


def optional_time(message: Message, name: str) -> Any:
    """Return the time a field holds, or None when it is not set. Raises INVALID_FIELD."""
    value = optional(message, name)
    return None if value is None else timestamp_from_pb(name, value)


def event_filters(request: pb.ListAuditEventsRequest) -> dict[str, str]:
    """Return what audit events to list, by column."""
    given = {
        "event_type": request.event_type,
        "actor_credential_id": request.actor_credential_id,
        "target_id": request.target_id,
        "outcome": enum_to_text(pb.AuditOutcome, request.outcome) if request.outcome else "",
    }
    return {column: value for column, value in given.items() if value}


def user_to_pb(user: Row) -> pb.User:
    """Return a user as callers see him."""
    return pb.User(
        user_id=user["user_id"],
        email=user["email"],
        display_name=user["display_name"],
        is_active=user["is_active"],
        last_login=timestamp_to_pb(user["last_login"]),
        created_at=timestamp_to_pb(user["created_at"]),
        updated_at=timestamp_to_pb(user["updated_at"]),
        deleted_at=timestamp_to_pb(user["deleted_at"]),
        etag=user_etag(user),
    )


def config_to_pb(config: Row) -> pb.UserConfig:
    """Return the configuration of a user, or the defaults of a tenant."""
    values = {name: config[name] for name in _CONFIG_SETTABLE}
    values["budget_period"] = enum_from_text(BudgetPeriod, config["budget_period"])
    return pb.UserConfig(
        user_id=config.get("user_id", ""),
        **values,
        etag=config_etag(config),
        created_at=timestamp_to_pb(config["created_at"]),
        updated_at=timestamp_to_pb(config["updated_at"]),
    )


def tenant_settings_to_pb(settings: Row) -> pb.TenantSettings:
    """Return what holds for all users of a tenant."""
    return pb.TenantSettings(
        message_search=enum_from_text(pb.MessageSearch, settings["message_search"]),
        updated_at=timestamp_to_pb(settings["updated_at"]),
        etag=tenant_settings_etag(settings),
    )


def usage_to_pb(usage: Row) -> pb.Usage:
    """Return what a user has used."""
    times = {"period_start": timestamp_to_pb(usage["period_start"])}
    return pb.Usage(**{**usage, **times})


def login_to_pb(login: Row) -> pb.Login:
    """Return a login."""
    return pb.Login(
        login_id=login["credential_id"],
        user_id=login["user_id"],
        created_at=timestamp_to_pb(login["created_at"]),
        refreshed_at=timestamp_to_pb(login["refreshed_at"]),
        refresh_expires_at=timestamp_to_pb(login["refresh_expires_at"]),
    )


def scopes_to_pb(texts: Sequence[str] | None) -> list[Scope.ValueType]:
    """Return the scopes of a key, in the order of the contract."""
    return sorted(map(scopes.from_text, texts or ()))


def key_to_pb(key: Row) -> pb.ApiKey:
    """Return a service key without its secret."""
    return pb.ApiKey(
        api_key_id=key["credential_id"],
        name=key["name"],
        scopes=scopes_to_pb(key["scopes"]),
        created_at=timestamp_to_pb(key["created_at"]),
        expires_at=timestamp_to_pb(key["expires_at"]),
        last_used_at=timestamp_to_pb(key["last_used_at"]),
        revoked_at=timestamp_to_pb(key["revoked_at"]),
    )


def event_to_pb(event: Row) -> pb.AuditEvent:
    """Return an audit event."""
    return pb.AuditEvent(
        event_id=event["event_id"],
        event_type=event["event_type"],
        outcome=enum_from_text(pb.AuditOutcome, event["outcome"]),
        actor_credential_id=event["actor_credential_id"],
        actor_user_id=event["actor_user_id"],
        target_type=event["target_type"],
        target_id=event["target_id"],
        created_at=timestamp_to_pb(event["created_at"]),
    )


def tenant_to_pb(tenant: Row) -> pb.Tenant:
    """Return a tenant."""
    return pb.Tenant(
        tenant_id=tenant["tenant_id"],
        name=tenant["name"],
        is_active=tenant["is_active"],
        created_at=timestamp_to_pb(tenant["created_at"]),
        updated_at=timestamp_to_pb(tenant["updated_at"]),
    )


def erasure_to_pb(erasure: Row) -> pb.Erasure:
    """Return an erasure with what it has removed so far."""
    finished, probe = erasure["finished_at"], erasure["probe"]
    state = pb.ERASURE_STATE_RUNNING if finished is None else pb.ERASURE_STATE_FINISHED
    return pb.Erasure(
        erasure_id=erasure["erasure_id"],
        state=state,
        credential_id=erasure["credential_id"],
        created_at=timestamp_to_pb(erasure["created_at"]),
        finished_at=timestamp_to_pb(finished),
        erased_rows=[
            pb.ErasedRows(table=table, rows=rows)
            for table, rows in sorted(erasure["erased"].items())
        ],
        erased_views=[
            pb.ErasedViews(kind=kind, views=views)
            for kind, views in sorted(erasure["forgotten"].items())
        ],
        probe=None if probe is None else pb.ErasureProbe(**probe),
    )
