"""An import through a kill -9."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from hub_client import HubClient, errors
from hub_client.v1 import (
    BatchAppendMessagesRequest,
    BatchMessage,
    CreateSessionRequest,
    CreateUserRequest,
    EraseUserRequest,
    ExportRecord,
    ExportUserRequest,
    GetUserRequest,
    ImportUserRequest,
    ListUsersRequest,
    MemoryType,
    RememberRequest,
    Role,
)
from tests.e2e.test_processes import sql
from tests.support import HubProcess, hub_process

_BATCHES: Final = 6
_MESSAGES: Final = 100  # of one batch
_PATIENCE: Final = 60  # seconds; it takes one or two


def test_an_import_that_is_killed_shows_nothing_and_is_sent_again(tmp_path: Path) -> None:
    """What was stored before the kill is not seen after it; sent again, he is as he was."""
    with hub_process(tmp_path / "data") as hub:
        address = hub.start()
        with HubClient(address, hub.key) as client:
            user_id = _someone_who_said_much(client)
            records = _exported(client, user_id)
            client.identity.erase_user(EraseUserRequest(user_id=user_id), timeout=_PATIENCE)
        _killed_amid(hub, address, records)
        stored = sql(hub, "SELECT count(*) FROM chat_messages")[0][0]
        assert 0 < stored < _BATCHES * _MESSAGES
        with HubClient(hub.start(), hub.key) as client:
            with pytest.raises(errors.NotFoundError):
                client.identity.get_user(GetUserRequest(user_id=user_id))
            assert list(client.identity.list_users(ListUsersRequest(show_deleted=True))) == []
            requests = [ImportUserRequest(export_record=record) for record in records]
            assert not client.identity.import_user(requests).already_here
            again = _exported(client, user_id)
        assert again[1:-1] == records[1:-1]
        assert again[-1].summary.sha256 == records[-1].summary.sha256


def _someone_who_said_much(client: HubClient) -> str:
    user_id = client.identity.create_user(CreateUserRequest(email="a@example.org")).user.user_id
    created = client.chat.create_session(CreateSessionRequest(user_id=user_id))
    client.memory.remember(
        RememberRequest(
            user_id=user_id,
            memory_type=MemoryType.MEMORY_TYPE_FACT,
            memory_content="Drinks coffee.",
        )
    )
    for batch in range(_BATCHES):
        client.chat.batch_append_messages(
            BatchAppendMessagesRequest(
                session_id=created.session.session_id,
                messages=[
                    BatchMessage(role=Role.ROLE_USER, content=f"Said {batch}-{number}")
                    for number in range(_MESSAGES)
                ],
            )
        )
    return user_id


def _exported(client: HubClient, user_id: str) -> list[ExportRecord]:
    answers = client.identity.export_user(ExportUserRequest(user_id=user_id))
    return [answer.export_record for answer in answers]


def _killed_amid(hub: HubProcess, address: str, records: Sequence[ExportRecord]) -> None:
    """Import all but the end, and kill the hub once it stored some of it."""
    killed = threading.Event()

    def requests() -> Iterator[ImportUserRequest]:
        for record in records[: len(records) // 2]:
            yield ImportUserRequest(export_record=record)
        killed.wait()

    def run() -> None:
        with HubClient(address, hub.key) as client, suppress(errors.HubError):
            client.identity.import_user(requests(), timeout=_PATIENCE)

    importing = threading.Thread(target=run)
    importing.start()
    deadline = time.monotonic() + _PATIENCE
    while sql(hub, "SELECT count(*) FROM chat_messages")[0][0] == 0:
        assert importing.is_alive()
        assert time.monotonic() < deadline
    hub.kill()
    killed.set()
    importing.join()
