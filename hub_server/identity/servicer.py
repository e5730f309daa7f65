"""IdentityService on the wire: check, call, convert."""

from typing import Any, Final

from google.protobuf.message import Message

from hub_client.v1 import identity_pb2 as pb
from hub_server.caller import Caller
from hub_server.convert import timestamp_to_pb
from hub_server.errors import HubError
from hub_server.idempotency import retry_of
from hub_server.identity.authentication import LEVELS
from hub_server.identity.logins import Logins
from hub_server.identity.service import IdentityService, config_etag, user_etag
from hub_server.paging import PageTokens
from hub_server.rows import Row

_SETTABLE: Final = (
    "enable_multichat",
    "enable_chat_history",
    "enable_rag",
    "enable_tool",
    "max_sessions",
    "preferred_language",
    "timezone",
)
_USER_SETTABLE: Final = ("email", "display_name")


class IdentityServicer:
    """Serves hub.v1.IdentityService."""

    def __init__(self, service: IdentityService, logins: Logins, pages: PageTokens) -> None:
        """Serve the given rules."""
        self._identity = service
        self._logins = logins
        self._pages = pages

    async def CreateUser(
        self, request: pb.CreateUserRequest, caller: Caller
    ) -> pb.CreateUserResponse:
        """Create a user."""
        password = request.password if request.HasField("password") else None
        retry = retry_of(request, but="password")
        user = await self._identity.create_user(
            caller, retry, request.email, password, request.display_name
        )
        return pb.CreateUserResponse(user=_user_to_pb(user))

    async def GetUser(self, request: pb.GetUserRequest, caller: Caller) -> pb.GetUserResponse:
        """Return a user."""
        user = await self._identity.get_user(caller, caller.acting_for(request.user_id))
        return pb.GetUserResponse(user=_user_to_pb(user))

    async def ListUsers(self, request: pb.ListUsersRequest, caller: Caller) -> pb.ListUsersResponse:
        """List users."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        users, after = await self._identity.list_users(
            caller,
            page,
            is_active=_get(request, "is_active"),
            email_prefix=request.email_prefix,
            show_deleted=request.show_deleted,
        )
        return pb.ListUsersResponse(
            users=map(_user_to_pb, users), next_page_token=self._pages.next(caller, request, after)
        )

    async def WhoAmI(self, _: pb.WhoAmIRequest, caller: Caller) -> pb.WhoAmIResponse:
        """Tell who calls."""
        own = caller.user_id
        user = None if own is None else _user_to_pb(await self._identity.get_user(caller, own))
        return pb.WhoAmIResponse(
            tenant_id=caller.tenant_id,
            credential_id=caller.credential_id,
            level=caller.level,
            user=user,
        )

    async def UpdateUser(
        self, request: pb.UpdateUserRequest, caller: Caller
    ) -> pb.UpdateUserResponse:
        """Change a user."""
        new = request.user
        changes = {name: getattr(new, name) for name in _user_paths(request)}
        user = await self._identity.update_user(caller, new.user_id, changes, new.etag)
        return pb.UpdateUserResponse(user=_user_to_pb(user))

    async def DeactivateUser(
        self, request: pb.DeactivateUserRequest, caller: Caller
    ) -> pb.DeactivateUserResponse:
        """Disable a user."""
        user = await self._identity.set_active(caller, request.user_id, is_active=False)
        return pb.DeactivateUserResponse(user=_user_to_pb(user))

    async def ActivateUser(
        self, request: pb.ActivateUserRequest, caller: Caller
    ) -> pb.ActivateUserResponse:
        """Enable a user."""
        user = await self._identity.set_active(caller, request.user_id, is_active=True)
        return pb.ActivateUserResponse(user=_user_to_pb(user))

    async def DeleteUser(
        self, request: pb.DeleteUserRequest, caller: Caller
    ) -> pb.DeleteUserResponse:
        """Delete a user so that he can be brought back."""
        user = await self._identity.delete_user(caller, request.user_id, request.etag)
        return pb.DeleteUserResponse(user=_user_to_pb(user))

    async def UndeleteUser(
        self, request: pb.UndeleteUserRequest, caller: Caller
    ) -> pb.UndeleteUserResponse:
        """Bring a deleted user back."""
        user = await self._identity.undelete_user(caller, request.user_id)
        return pb.UndeleteUserResponse(user=_user_to_pb(user))

    async def Login(self, request: pb.LoginRequest, caller: Caller | None) -> pb.LoginResponse:
        """Exchange email and password for tokens."""
        tokens, user = await self._logins.login(caller, request.email, request.password)
        return pb.LoginResponse(
            token=tokens.token,
            expires_at=timestamp_to_pb(tokens.expires_at),
            user=_user_to_pb(user),
            refresh_token=tokens.refresh_token,
            refresh_expires_at=timestamp_to_pb(tokens.refresh_expires_at),
            login_id=tokens.login_id,
        )

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, caller: Caller
    ) -> pb.ChangePasswordResponse:
        """Change a password that is known."""
        user_id = caller.acting_for(request.user_id)
        ended = await self._logins.change_password(
            caller, user_id, request.old_password, request.new_password
        )
        return pb.ChangePasswordResponse(ended=ended)

    async def CreatePasswordReset(
        self, request: pb.CreatePasswordResetRequest, caller: Caller
    ) -> pb.CreatePasswordResetResponse:
        """Make a one-time token for a new password."""
        token, expires_at = await self._logins.create_reset(caller, request.user_id)
        return pb.CreatePasswordResetResponse(
            reset_token=token, expires_at=timestamp_to_pb(expires_at)
        )

    async def ConfirmPasswordReset(
        self, request: pb.ConfirmPasswordResetRequest, _: Caller | None
    ) -> pb.ConfirmPasswordResetResponse:
        """Set a new password by a reset token."""
        ended = await self._logins.confirm_reset(request.reset_token, request.new_password)
        return pb.ConfirmPasswordResetResponse(ended=ended)

    async def RefreshToken(
        self, request: pb.RefreshTokenRequest, _: Caller | None
    ) -> pb.RefreshTokenResponse:
        """Exchange a refresh token for the next pair."""
        tokens = await self._logins.refresh(request.refresh_token)
        return pb.RefreshTokenResponse(
            token=tokens.token,
            expires_at=timestamp_to_pb(tokens.expires_at),
            refresh_token=tokens.refresh_token,
            refresh_expires_at=timestamp_to_pb(tokens.refresh_expires_at),
        )

    async def Logout(self, request: pb.LogoutRequest, caller: Caller) -> pb.LogoutResponse:
        """End the caller's login, or all of his."""
        return pb.LogoutResponse(ended=await self._logins.end(caller, every=request.all))

    async def ListLogins(
        self, request: pb.ListLoginsRequest, caller: Caller
    ) -> pb.ListLoginsResponse:
        """List logins."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        user_id = caller.acting_for(request.user_id)
        logins, after = await self._logins.list_logins(caller, user_id, page)
        return pb.ListLoginsResponse(
            logins=map(_login_to_pb, logins),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def RevokeLogin(
        self, request: pb.RevokeLoginRequest, caller: Caller
    ) -> pb.RevokeLoginResponse:
        """End a login."""
        await self._logins.revoke(caller, request.login_id)
        return pb.RevokeLoginResponse()

    async def IntrospectToken(
        self, request: pb.IntrospectTokenRequest, caller: Caller
    ) -> pb.IntrospectTokenResponse:
        """Tell whether a token is valid."""
        credential = await self._logins.introspect(caller, request.token)
        if credential is None:
            return pb.IntrospectTokenResponse(active=False)
        return pb.IntrospectTokenResponse(
            active=True,
            credential_id=credential["credential_id"],
            user_id=credential["user_id"],
            level=LEVELS[credential["kind"]],
            expires_at=timestamp_to_pb(credential["expires_at"]),
        )

    async def GetUserConfig(
        self, request: pb.GetUserConfigRequest, caller: Caller
    ) -> pb.GetUserConfigResponse:
        """Return a configuration."""
        config = await self._identity.get_config(caller, caller.acting_for(request.user_id))
        return pb.GetUserConfigResponse(config=_config_to_pb(config))

    async def UpdateUserConfig(
        self, request: pb.UpdateUserConfigRequest, caller: Caller
    ) -> pb.UpdateUserConfigResponse:
        """Change a configuration."""
        config = await self._identity.update_config(
            caller, request.config.user_id, _changes(request), request.config.etag
        )
        return pb.UpdateUserConfigResponse(config=_config_to_pb(config))


def _changes(request: pb.UpdateUserConfigRequest) -> dict[str, Any]:
    """Return the values to set; None = back to the default. Raises INVALID_FIELD."""
    config, paths = request.config, list(request.update_mask.paths)
    if not paths:
        paths = [name for name in _SETTABLE if config.HasField(name)]
    elif paths == ["*"]:
        paths = list(_SETTABLE)
    unknown = [path for path in paths if path not in _SETTABLE]
    if unknown:
        raise HubError.invalid("update_mask", f"may name: {', '.join(_SETTABLE)}")
    return {name: _get(config, name) for name in paths}


def _user_paths(request: pb.UpdateUserRequest) -> list[str]:
    """Return which fields of a user to change. Raises INVALID_FIELD."""
    paths = list(request.update_mask.paths)
    if paths == ["*"]:
        paths = list(_USER_SETTABLE)
    elif not paths:
        paths = [name for name in _USER_SETTABLE if getattr(request.user, name)]
    if not set(paths) <= set(_USER_SETTABLE):
        raise HubError.invalid("update_mask", f"may name: {', '.join(_USER_SETTABLE)}")
    if "email" in paths and not request.user.email:
        raise HubError.invalid("user.email", "is required")
    return paths


def _get(message: Message, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _user_to_pb(user: Row) -> pb.User:
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


def _login_to_pb(login: Row) -> pb.Login:
    return pb.Login(
        login_id=login["credential_id"],
        user_id=login["user_id"],
        created_at=timestamp_to_pb(login["created_at"]),
        refreshed_at=timestamp_to_pb(login["refreshed_at"]),
        refresh_expires_at=timestamp_to_pb(login["refresh_expires_at"]),
    )


def _config_to_pb(config: Row) -> pb.UserConfig:
    return pb.UserConfig(
        user_id=config["user_id"],
        **{name: config[name] for name in _SETTABLE},
        etag=config_etag(config),
        created_at=timestamp_to_pb(config["created_at"]),
        updated_at=timestamp_to_pb(config["updated_at"]),
    )
