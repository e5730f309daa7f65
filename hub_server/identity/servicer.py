"""IdentityService on the wire: check, call, convert."""

from hub_client.v1 import identity_pb2 as pb
from hub_client.v1.options_pb2 import Level
from hub_server.caller import Caller
from hub_server.convert import timestamp_to_pb
from hub_server.erasure.service import Erasures
from hub_server.errors import HubError
from hub_server.idempotency import retry_of
from hub_server.identity import scopes, wire
from hub_server.identity.keys import Keys, Tenants
from hub_server.identity.logins import Logins
from hub_server.identity.service import IdentityService
from hub_server.paging import PageTokens
from hub_server.transfer.importing import Transfers
from hub_server.transfer.servicer import ExportFeed, ImportIntake


class IdentityServicer:
    """Serves hub.v1.IdentityService."""

    def __init__(
        self,
        service: IdentityService,
        logins: Logins,
        keys: Keys,
        tenants: Tenants,
        transfers: Transfers,
        erasures: Erasures,
        pages: PageTokens,
    ) -> None:
        """Serve the given rules."""
        self._identity = service
        self._logins = logins
        self._keys = keys
        self._tenants = tenants
        self._transfers = transfers
        self._erasures = erasures
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
        return pb.CreateUserResponse(user=wire.user_to_pb(user))

    async def GetUser(self, request: pb.GetUserRequest, caller: Caller) -> pb.GetUserResponse:
        """Return a user."""
        user = await self._identity.get_user(caller, caller.acting_for(request.user_id))
        return pb.GetUserResponse(user=wire.user_to_pb(user))

    async def ListUsers(self, request: pb.ListUsersRequest, caller: Caller) -> pb.ListUsersResponse:
        """List users."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        users, after = await self._identity.list_users(
            caller,
            page,
            is_active=wire.optional(request, "is_active"),
            email_prefix=request.email_prefix,
            show_deleted=request.show_deleted,
        )
        return pb.ListUsersResponse(
            users=map(wire.user_to_pb, users),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def WhoAmI(self, _: pb.WhoAmIRequest, caller: Caller) -> pb.WhoAmIResponse:
        """Tell who calls."""
        own = caller.user_id
        user = None if own is None else wire.user_to_pb(await self._identity.get_user(caller, own))
        return pb.WhoAmIResponse(
            tenant_id=caller.tenant_id,
            credential_id=caller.credential_id,
            level=caller.level if caller.scopes is None or own else scopes.level_of(caller.scopes),
            user=user,
            scopes=sorted(caller.scopes or ()),
        )

    async def UpdateUser(
        self, request: pb.UpdateUserRequest, caller: Caller
    ) -> pb.UpdateUserResponse:
        """Change a user."""
        new, changes = request.user, wire.user_changes(request.user, request.update_mask)
        user = await self._identity.update_user(caller, new.user_id, changes, new.etag)
        return pb.UpdateUserResponse(user=wire.user_to_pb(user))

    async def DeactivateUser(
        self, request: pb.DeactivateUserRequest, caller: Caller
    ) -> pb.DeactivateUserResponse:
        """Disable a user."""
        user = await self._identity.set_active(caller, request.user_id, is_active=False)
        return pb.DeactivateUserResponse(user=wire.user_to_pb(user))

    async def ActivateUser(
        self, request: pb.ActivateUserRequest, caller: Caller
    ) -> pb.ActivateUserResponse:
        """Enable a user."""
        user = await self._identity.set_active(caller, request.user_id, is_active=True)
        return pb.ActivateUserResponse(user=wire.user_to_pb(user))

    async def DeleteUser(
        self, request: pb.DeleteUserRequest, caller: Caller
    ) -> pb.DeleteUserResponse:
        """Delete a user so that he can be brought back."""
        user = await self._identity.delete_user(caller, request.user_id, request.etag)
        return pb.DeleteUserResponse(user=wire.user_to_pb(user))

    async def UndeleteUser(
        self, request: pb.UndeleteUserRequest, caller: Caller
    ) -> pb.UndeleteUserResponse:
        """Bring a deleted user back."""
        user = await self._identity.undelete_user(caller, request.user_id)
        return pb.UndeleteUserResponse(user=wire.user_to_pb(user))

    async def ExportUser(self, request: pb.ExportUserRequest, _: Caller) -> ExportFeed:
        """Stream a user with all that is his."""
        return ExportFeed(self._transfers.export(request.user_id))

    async def EraseUser(self, request: pb.EraseUserRequest, caller: Caller) -> pb.EraseUserResponse:
        """Erase a user for ever."""
        erasure = await self._erasures.erase_user(caller, request.user_id)
        return pb.EraseUserResponse(erasure=wire.erasure_to_pb(erasure))

    async def GetErasure(
        self, request: pb.GetErasureRequest, caller: Caller
    ) -> pb.GetErasureResponse:
        """Return the erasure of a user."""
        erasure = await self._erasures.get(caller, request.user_id)
        return pb.GetErasureResponse(erasure=wire.erasure_to_pb(erasure))

    async def ImportUser(self, request: pb.ImportUserRequest, _: Caller) -> ImportIntake:
        """Take in a user with all that is his."""
        intake = ImportIntake(self._transfers.bring(), wire.user_to_pb)
        intake.take(request)
        return intake

    async def Login(self, request: pb.LoginRequest, caller: Caller | None) -> pb.LoginResponse:
        """Exchange email and password for tokens."""
        tokens, user = await self._logins.login(caller, request.email, request.password)
        return pb.LoginResponse(
            token=tokens.token,
            expires_at=timestamp_to_pb(tokens.expires_at),
            user=wire.user_to_pb(user),
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
            logins=map(wire.login_to_pb, logins),
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
        held = scopes.expanded(tuple(credential["scopes"] or ()))
        is_key = credential["kind"] == "service_key"
        return pb.IntrospectTokenResponse(
            active=True,
            credential_id=credential["credential_id"],
            user_id=credential["user_id"],
            level=scopes.level_of(held) if is_key else Level.LEVEL_USER,
            scopes=sorted(held),
            expires_at=timestamp_to_pb(credential["expires_at"]),
        )

    async def GetUserConfig(
        self, request: pb.GetUserConfigRequest, caller: Caller
    ) -> pb.GetUserConfigResponse:
        """Return a configuration."""
        config = await self._identity.get_config(caller, caller.acting_for(request.user_id))
        return pb.GetUserConfigResponse(config=wire.config_to_pb(config))

    async def UpdateUserConfig(
        self, request: pb.UpdateUserConfigRequest, caller: Caller
    ) -> pb.UpdateUserConfigResponse:
        """Change a configuration."""
        new, changes = request.config, wire.config_changes(request.config, request.update_mask)
        if not new.user_id:
            raise HubError.invalid("config.user_id", "is required")
        config = await self._identity.update_config(caller, new.user_id, changes, new.etag)
        return pb.UpdateUserConfigResponse(config=wire.config_to_pb(config))

    async def GetDefaultConfig(
        self, _: pb.GetDefaultConfigRequest, caller: Caller
    ) -> pb.GetDefaultConfigResponse:
        """Return the defaults of the tenant."""
        config = await self._identity.get_default_config(caller)
        return pb.GetDefaultConfigResponse(config=wire.config_to_pb(config))

    async def UpdateDefaultConfig(
        self, request: pb.UpdateDefaultConfigRequest, caller: Caller
    ) -> pb.UpdateDefaultConfigResponse:
        """Change the defaults of the tenant."""
        if request.config.user_id:
            raise HubError.invalid("config.user_id", "must be empty: defaults are nobody's")
        changes = wire.config_changes(request.config, request.update_mask)
        config = await self._identity.update_default_config(caller, changes, request.config.etag)
        return pb.UpdateDefaultConfigResponse(config=wire.config_to_pb(config))

    async def GetTenantSettings(
        self, _: pb.GetTenantSettingsRequest, caller: Caller
    ) -> pb.GetTenantSettingsResponse:
        """Return what holds for all users of the tenant."""
        settings = wire.tenant_settings_to_pb(await self._identity.get_tenant_settings(caller))
        return pb.GetTenantSettingsResponse(tenant_settings=settings)

    async def UpdateTenantSettings(
        self, request: pb.UpdateTenantSettingsRequest, caller: Caller
    ) -> pb.UpdateTenantSettingsResponse:
        """Change what holds for all users of the tenant."""
        given = request.tenant_settings
        changes = wire.tenant_settings_changes(given, request.update_mask)
        settings = await self._identity.update_tenant_settings(caller, changes, given.etag)
        return pb.UpdateTenantSettingsResponse(tenant_settings=wire.tenant_settings_to_pb(settings))

    async def GetUsage(self, request: pb.GetUsageRequest, caller: Caller) -> pb.GetUsageResponse:
        """Return what a user has used."""
        usage = await self._identity.get_usage(caller, caller.acting_for(request.user_id))
        return pb.GetUsageResponse(usage=wire.usage_to_pb(usage))

    async def ListUsage(self, request: pb.ListUsageRequest, caller: Caller) -> pb.ListUsageResponse:
        """List what users have used."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        usages, after = await self._identity.list_usage(caller, page)
        return pb.ListUsageResponse(
            usages=map(wire.usage_to_pb, usages),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, caller: Caller
    ) -> pb.CreateApiKeyResponse:
        """Make a service key."""
        wanted = [scopes.to_text(scope) for scope in request.scopes if scope]
        if len(wanted) != len(request.scopes):
            raise HubError.invalid("scopes", "must not hold SCOPE_UNSPECIFIED")
        expires_at = wire.optional_time(request, "expires_at")
        key, secret = await self._keys.create_key(
            caller, retry_of(request), request.name, wanted, expires_at
        )
        return pb.CreateApiKeyResponse(api_key=wire.key_to_pb(key), secret=secret)

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, caller: Caller
    ) -> pb.ListApiKeysResponse:
        """List service keys."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        keys, after = await self._keys.list_keys(caller, page, show_ended=request.show_ended)
        return pb.ListApiKeysResponse(
            api_keys=map(wire.key_to_pb, keys),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, caller: Caller
    ) -> pb.RevokeApiKeyResponse:
        """End a service key."""
        key = await self._keys.revoke_key(caller, request.api_key_id)
        return pb.RevokeApiKeyResponse(api_key=wire.key_to_pb(key))

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, caller: Caller
    ) -> pb.ListAuditEventsResponse:
        """List audit events."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        since, until = (wire.optional_time(request, name) for name in ("since", "until"))
        events, after = await self._keys.list_events(
            caller, page, wire.event_filters(request), since, until
        )
        return pb.ListAuditEventsResponse(
            audit_events=map(wire.event_to_pb, events),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def CreateTenant(
        self, request: pb.CreateTenantRequest, caller: Caller
    ) -> pb.CreateTenantResponse:
        """Create a tenant."""
        tenant, secret = await self._tenants.create(caller, retry_of(request), request.name)
        return pb.CreateTenantResponse(tenant=wire.tenant_to_pb(tenant), secret=secret)

    async def GetTenant(self, request: pb.GetTenantRequest, caller: Caller) -> pb.GetTenantResponse:
        """Return a tenant."""
        tenant = await self._tenants.get(caller, request.tenant_id)
        return pb.GetTenantResponse(tenant=wire.tenant_to_pb(tenant))

    async def ListTenants(
        self, request: pb.ListTenantsRequest, caller: Caller
    ) -> pb.ListTenantsResponse:
        """List tenants."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        tenants, after = await self._tenants.list_tenants(page)
        return pb.ListTenantsResponse(
            tenants=map(wire.tenant_to_pb, tenants),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def DeactivateTenant(
        self, request: pb.DeactivateTenantRequest, caller: Caller
    ) -> pb.DeactivateTenantResponse:
        """Disable a tenant."""
        tenant = await self._tenants.set_active(caller, request.tenant_id, is_active=False)
        return pb.DeactivateTenantResponse(tenant=wire.tenant_to_pb(tenant))

    async def ActivateTenant(
        self, request: pb.ActivateTenantRequest, caller: Caller
    ) -> pb.ActivateTenantResponse:
        """Enable a tenant."""
        tenant = await self._tenants.set_active(caller, request.tenant_id, is_active=True)
        return pb.ActivateTenantResponse(tenant=wire.tenant_to_pb(tenant))

    async def EraseTenant(
        self, request: pb.EraseTenantRequest, caller: Caller
    ) -> pb.EraseTenantResponse:
        """Erase a tenant for ever."""
        erasure = await self._erasures.erase_tenant(caller, request.tenant_id)
        return pb.EraseTenantResponse(erasure=wire.erasure_to_pb(erasure))

    async def GetTenantErasure(
        self, request: pb.GetTenantErasureRequest, caller: Caller
    ) -> pb.GetTenantErasureResponse:
        """Return the erasure of a tenant."""
        erasure = await self._erasures.get_of_tenant(caller, request.tenant_id)
        return pb.GetTenantErasureResponse(erasure=wire.erasure_to_pb(erasure))
