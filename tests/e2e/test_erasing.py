"""Erasure through a kill -9."""

import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from hub_client import HubClient, errors
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    CreateUserRequest,
    EraseUserRequest,
    Erasure,
    ErasureState,
    GetErasureRequest,
    GetUserRequest,
    Role,
)
from tests.e2e.test_processes import sql
from tests.erasing import bearing, rows_of
from tests.support import HubProcess, hub_process

_MESSAGES: Final = 30_000
_PATIENCE: Final = 60  # seconds; it takes one or two


def test_an_erasure_that_is_killed_is_finished_after_the_restart(tmp_path: Path) -> None:
    """In the middle nothing of his is shown; in the end nothing is left, all counted once.

    The hub that starts knows the one before dead, and does not wait for its lease to end.
    """
    with hub_process(tmp_path / "data", ingestion_lease="3600") as hub:
        address = hub.start()
        with HubClient(address, hub.key) as client:
            user_id, session_id = _someone_who_said_much(hub, client)
            erasing = threading.Thread(target=_erase, args=(address, hub.key, user_id))
            erasing.start()
            while _removed(hub) == 0:
                assert erasing.is_alive()
            hub.kill()
            erasing.join()
        assert 0 < _removed(hub) < _MESSAGES
        with HubClient(hub.start(), hub.key) as client:
            with pytest.raises(errors.NotFoundError):
                client.identity.get_user(GetUserRequest(user_id=user_id))
            erasure = _erasure(client, user_id)
            deadline = time.monotonic() + _PATIENCE
            while erasure.state == ErasureState.ERASURE_STATE_RUNNING:
                assert time.monotonic() < deadline
                erasure = _erasure(client, user_id)
        removed = {one.table: one.rows for one in erasure.erased_rows}
        assert removed["chat_messages"] == _MESSAGES + 1
        assert removed["users"] == 1
        assert bearing(rows_of(partial(sql, hub)), [user_id, session_id, "zanary"]) == {}


def _someone_who_said_much(hub: HubProcess, client: HubClient) -> tuple[str, str]:
    """Return the ids of a user and of his session of thirty thousand messages."""
    user_id = client.identity.create_user(CreateUserRequest(email="a@example.org")).user.user_id
    created = client.chat.create_session(CreateSessionRequest(user_id=user_id))
    session_id = created.session.session_id
    client.chat.append_message(
        AppendMessageRequest(session_id=session_id, role=Role.ROLE_USER, content="zanary")
    )
    sql(
        hub,
        "INSERT INTO chat_messages (tenant_id, session_id, seq, message_id, role, message_type,"
        " content, token_count, model_name)"
        " SELECT tenant_id, session_id, seq + n, gen_random_uuid(), role, message_type, content,"
        " token_count, model_name FROM chat_messages, generate_series(1, 30000) n",
    )
    return user_id, session_id


def _erase(address: str, key: str, user_id: str) -> None:
    with HubClient(address, key) as client, suppress(errors.HubError):
        client.identity.erase_user(EraseUserRequest(user_id=user_id), timeout=10)


def _removed(hub: HubProcess) -> int:
    """Return how many messages an erasure has removed so far."""
    counts = sql(hub, "SELECT (erased->>'chat_messages')::int FROM erasures")
    return counts[0][0] or 0 if counts else 0


def _erasure(client: HubClient, user_id: str) -> Erasure:
    return client.identity.get_erasure(GetErasureRequest(user_id=user_id)).erasure
