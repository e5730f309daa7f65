"""Passwords: real bcrypt, a third of a second a hash."""

import asyncio
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import closing

import bcrypt
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hub_server.errors import HubError, Reason
from hub_server.passwords import ROUNDS, Passwords
from hub_server.workers import Workers


@pytest.fixture(scope="module")
def passwords() -> Iterator[Passwords]:
    """The pool of a hub."""
    passwords = Passwords({"new": b"a pepper", "old": b"an older one"})
    yield passwords
    passwords.close()


async def test_passwords_that_differ_after_72_bytes_are_different(passwords: Passwords) -> None:
    """Bcrypt reads 72 bytes only; what comes after still counts."""
    stored = await passwords.hash("x" * 72 + "a")
    assert await passwords.verify("x" * 72 + "a", stored)
    assert not await passwords.verify("x" * 72 + "b", stored)


async def test_a_password_matches_however_its_letters_are_composed(passwords: Passwords) -> None:
    """`é` typed on one system is `é` on another, whether it is one code point or two."""
    stored = await passwords.hash("caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    assert await passwords.verify("cafe\N{COMBINING ACUTE ACCENT}", stored)
    assert not await passwords.verify("cafe", stored)


async def test_a_user_without_a_password_never_fits(passwords: Passwords) -> None:
    """None stands for nobody's password, and not for an empty one."""
    assert not await passwords.verify("", None)


async def test_a_stored_hash_tells_its_scheme_and_cost(passwords: Passwords) -> None:
    """A later scheme can be told from this one; equal passwords have different hashes."""
    first, second = await asyncio.gather(passwords.hash("the same"), passwords.hash("the same"))
    assert first.startswith(f"hub1$new$2b${ROUNDS}$")
    assert first != second
    assert "the same" not in first


async def test_each_verification_costs_one_hash(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right, wrong, or nobody's: time tells nothing."""
    stored = await passwords.hash("right")
    costs: list[bytes] = []
    checkpw = bcrypt.checkpw

    def counted(password: bytes, hashed: bytes) -> bool:
        costs.append(hashed[:7])
        return checkpw(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    for password, known in (("right", stored), ("wrong", stored), ("any", None)):
        costs.clear()
        await passwords.verify(password, known)
        assert costs == [b"$2b$%d$" % ROUNDS]


async def test_work_beyond_the_queue_is_refused_at_once() -> None:
    """A flood waits in a bounded queue; what does not fit is OVERLOADED, and later work is done."""
    workers, gate = Workers("test", threads=1, most_waiting=2), threading.Event()
    try:
        waiting = [asyncio.create_task(workers.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)  # lets both begin to wait
        async with asyncio.timeout(5):
            with pytest.raises(HubError) as caught:
                await workers.run(lambda: True)
        assert caught.value.reason == Reason.REASON_OVERLOADED
        gate.set()
        assert await asyncio.gather(*waiting) == [True, True]
        assert await workers.run(lambda: "done") == "done"
    finally:
        gate.set()
        workers.close()


async def test_work_that_fails_makes_room_too() -> None:
    """An error reaches whoever asked, and takes no place in the queue for ever."""
    workers = Workers("test", threads=1, most_waiting=1)
    try:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await workers.run(lambda: 1 // 0)
    finally:
        workers.close()


@settings(max_examples=300, deadline=None)
@given(
    password=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1000)
    | st.sampled_from(["x" * 71, "x" * 72, "x" * 73, "\N{GRINNING FACE}" * 18, "a\0b", "\0" * 9]),
    place=st.integers(0, 999),
    bit=st.integers(0, 7),
)
def test_any_changed_byte_of_a_password_makes_it_another(
    password: str, place: int, bit: int
) -> None:
    """Up to 1,000 characters, NUL, emoji and 72-byte borders included.

    Unless both are the same text to Unicode (NFKC): `é` composed or not is one password.
    """
    raw = bytearray(password.encode())
    raw[place % len(raw)] ^= 1 << bit
    changed = raw.decode(errors="replace")
    same = unicodedata.normalize("NFKC", changed) == unicodedata.normalize("NFKC", password)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hub_server.passwords.ROUNDS", 4)
        with closing(Passwords({"new": b"a pepper"})) as passwords:
            stored = passwords._hash(password)
            assert passwords._verify(password, stored)
            assert passwords._verify(changed, stored) == same


async def test_a_hash_of_an_older_pepper_is_verified_and_outdated() -> None:
    """The first pepper is for new hashes; one that nobody knows any more verifies nothing."""
    old = Passwords({"old": b"an older one"})
    stored = await old.hash("right")
    both = Passwords({"new": b"a pepper", "old": b"an older one"})
    lost = Passwords({"new": b"a pepper"})
    try:
        assert await both.verify("right", stored)
        assert not await both.verify("wrong", stored)
        assert both.is_outdated(stored)
        assert not old.is_outdated(stored)
        assert not await lost.verify("right", stored)
    finally:
        for one in (old, both, lost):
            one.close()
