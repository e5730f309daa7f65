"""Views on disk, so that a large one need not be built anew: one file each, or none.

A file that is not what this very code would have written for the space is no error, it is
removed: the view is then made from the rows. Besides ids and vectors it holds the terms of texts (a
view of 100,000 rows would take half a minute to split them again), so erasing must `forget`.

Processes share a folder: files come into being under names of their own and are then renamed. What
one process forgets, another may hold in memory and write later; hence the epoch, a random name that
`forget` changes. A view bears the epoch it was begun in, and is not written in another. What
is removed in the course of things, with a seq, only outdates: a view that has followed that seq may
be written, since a dump has nothing of rows that are gone.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from hub_server.retrieval import graph
from hub_server.retrieval.packing import Parts
from hub_server.retrieval.view import Dump

__all__ = ["Snapshots", "Space"]

_MAGIC: Final = b"cortex hub view\n"
_FORMAT: Final = 1
_MOST_MANIFEST: Final = 1 << 20  # bytes
_DIGEST: Final = 32  # bytes of a sha256
_TEMPORARY: Final = ".tmp"
_VIEW: Final = ".view"
_EPOCH: Final = re.compile(rb"([0-9a-f]*)(?: (\d{1,19}))?")

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.views")


@dataclass(frozen=True, slots=True)
class Space:
    """What a view is of: one user's rows of one kind, embedded by one model."""

    tenant_id: str
    user_id: str
    kind: str
    embedding_model: str


class Snapshots:
    """The snapshots in a folder. Any thread of any process may call anything at any time."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, which is made when it is needed, for this user alone."""
        self._folder = folder
        # By the names of files, which stand for their spaces: each is read once.
        self._owners: dict[str, tuple[str, str]] = {}

    def clear(self) -> None:
        """Remove what processes left that were killed while they wrote."""
        self._clear("*")

    def _clear(self, name: str) -> None:
        for file in self._folder.glob(f"{name}{_TEMPORARY}"):
            try:
                with file.open("rb") as left:
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who writes it holds it
                    file.unlink(missing_ok=True)
            except OSError:
                continue

    def epoch(self, space: Space) -> str:
        """Return what `save` wants to know of a view that begins now."""
        try:
            return _parsed(self._epoch_file(space).read_bytes())[0]
        except FileNotFoundError:
            return ""

    def load(self, space: Space) -> Dump | None:
        """Return what was saved of a space; None = nothing, or nothing of use."""
        file = self._file(space)
        try:
            with file.open("rb") as opened:
                return _read(opened, space)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.refuse(space, str(error))
            return None

    def size(self, space: Space) -> int:
        """Return how many bytes the snapshot of a space has; 0 = there is none."""
        try:
            return self._file(space).stat().st_size
        except FileNotFoundError:
            return 0

    def refuse(self, space: Space, why: str) -> None:
        """Remove the snapshot of a space, which is of no use."""
        log.warning("view snapshot refused", kind=space.kind, user_id=space.user_id, why=why)
        with suppress(OSError):
            self._file(space).unlink()

    def save(self, space: Space, epoch: str, dump: Dump) -> bool | None:
        """Write a view that began in an epoch; False = the space was forgotten since.

        None = the view does not know yet of rows that were removed; it is not written. Raises
        OSError, as where the disk is full; the snapshot before it is then left.
        """
        if self.epoch(space) != epoch:
            return False
        self._make_folder()
        file = self._file(space)
        temporary, opened = _temporary(file)
        try:
            with opened:
                _write(opened, space, dump)
                opened.flush()
                os.fsync(opened.fileno())
                with self._held(space) as current:
                    now, removed_at = _parsed(current.read())
                    if now != epoch:
                        return False
                    if dump.facts["applied_seq"] < removed_at:
                        return None
                    temporary.replace(file)
                self._sync_folder()
        except FileNotFoundError:  # forgotten, temporary file and all
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def owners(self) -> set[tuple[str, str]]:
        """Return the tenants' users of whom there are snapshots."""
        known, found = self._owners, {}
        for file in self._folder.glob(f"*{_VIEW}"):
            with suppress(OSError, ValueError, KeyError, TypeError):  # `load` will remove it
                found[file.name] = known.get(file.name) or _owner(file)
        self._owners = found
        return set(found.values())

    def forget(self, space: Space) -> int:
        """Remove all files of a tenant's user's kind, of whatever model, and begin an epoch.

        Returns how many snapshots it were.
        """
        self._make_folder()
        removed = 0
        epoch_file = self._epoch_file(space)
        with self._held(space) as held:
            held.truncate()
            held.write(secrets.token_hex(16).encode())
            held.flush()
            os.fsync(held.fileno())
            for file in self._folder.glob(f"{_key(space)}.*"):
                if file != epoch_file:
                    file.unlink(missing_ok=True)
                    removed += file.name.endswith(_VIEW)
        self._sync_folder()
        return removed

    def outdate(self, space: Space, seq: int) -> None:
        """Remove all files of a tenant's user's kind, since rows in them were removed at `seq`.

        Views that are behind it are not written from now on.
        """
        self._make_folder()
        with self._held(space) as held:
            epoch, removed_at = _parsed(held.read())
            if removed_at < seq:
                held.seek(0)
                held.truncate()
                held.write(f"{epoch} {seq}".encode())
                held.flush()
                os.fsync(held.fileno())
            for file in self._folder.glob(f"{_key(space)}.*.view"):
                file.unlink(missing_ok=True)
            self._clear(f"{_key(space)}.*")
        self._sync_folder()

    @contextmanager
    def _held(self, space: Space) -> Iterator[BinaryIO]:
        """Hold a tenant's user's kind against all processes; yield the file of its epoch."""
        file = os.open(self._epoch_file(space), os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(file, "r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield held

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _epoch_file(self, space: Space) -> Path:
        return self._folder / f"{_key(space)}.epoch"

    def _file(self, space: Space) -> Path:
        model = hashlib.sha256(space.embedding_model.encode()).hexdigest()[:16]
        return self._folder / f"{_key(space)}.{model}{_VIEW}"


def _parsed(content: bytes) -> tuple[str, int]:
    """Return the epoch that a file of it tells, and the seq at which rows were last removed.

    A file that was altered is another epoch.
    """
    told = _EPOCH.fullmatch(content)
    return (told[1].decode(), int(told[2] or 0)) if told else (content.hex(), 0)


def _key(space: Space) -> str:
    parts = json.dumps([space.tenant_id, space.user_id, space.kind])
    return hashlib.sha256(parts.encode()).hexdigest()[:40]


def _temporary(file: Path) -> tuple[Path, BinaryIO]:
    """Make a file to write before it becomes `file`; it is held, so that nobody clears it away."""
    while True:
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}{_TEMPORARY}")
        opened = open(temporary, "xb", opener=_private)  # noqa: SIM115 - its user closes it
        fcntl.flock(opened, fcntl.LOCK_EX)
        if os.fstat(opened.fileno()).st_nlink:
            return temporary, opened
        opened.close()  # cleared away by a process that started just before we held it


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _made_by() -> dict[str, object]:
    """Return all that decides whether this process can go on with what another wrote."""
    return {
        "format": _FORMAT,
        "M": graph.M,
        "ef_construction": graph.EF_CONSTRUCTION,
        "hnswlib": version("hnswlib"),
        "stemmer": version("PyStemmer"),
        "unicode": unicodedata.unidata_version,
    }


def _identity(space: Space) -> dict[str, str]:
    return {
        "tenant_id": space.tenant_id,
        "user_id": space.user_id,
        "kind": space.kind,
        "model": space.embedding_model,
    }


def _write(file: BinaryIO, space: Space, dump: Dump) -> None:
    """Write the manifest, its sha256 before it, and then all parts one after the other."""
    parts = {name: np.ascontiguousarray(part) for name, part in dump.parts.items()}
    manifest = {
        "made_by": _made_by(),
        "space": _identity(space),
        "facts": dump.facts,
        "parts": [
            {
                "name": name,
                "dtype": part.dtype.str,
                "shape": part.shape,
                "sha256": hashlib.sha256(_bytes(part)).hexdigest(),
            }
            for name, part in parts.items()
        ],
    }
    told = json.dumps(manifest).encode()
    file.write(_MAGIC + hashlib.sha256(told).digest() + len(told).to_bytes(8, "little") + told)
    file.writelines(_bytes(part) for part in parts.values())


def _read(file: BinaryIO, space: Space) -> Dump:
    """Return what was written. Raises ValueError, KeyError or TypeError unless it is just that."""
    manifest = _manifest(file)
    if manifest["made_by"] != _made_by():
        raise ValueError("another version wrote it")
    if manifest["space"] != _identity(space):
        raise ValueError("it is of another space")
    blank = {part["name"]: (np.dtype(part["dtype"]), part["shape"]) for part in manifest["parts"]}
    size = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in blank.values())
    if os.fstat(file.fileno()).st_size != file.tell() + size:
        raise ValueError("it is not as long as it says")
    parts: Parts = {}
    for told in manifest["parts"]:
        part = parts[told["name"]] = np.empty(told["shape"], dtype=np.dtype(told["dtype"]))
        file.readinto(_bytes(part))  # type: ignore[attr-defined]
        if hashlib.sha256(_bytes(part)).hexdigest() != told["sha256"]:
            raise ValueError(f"its {told['name']} were altered")
    return Dump(manifest["facts"], parts)


def _owner(file: Path) -> tuple[str, str]:
    with file.open("rb") as opened:
        space = _manifest(opened)["space"]
    return space["tenant_id"], space["user_id"]


def _manifest(file: BinaryIO) -> dict[str, Any]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is no snapshot")
    digest, length = file.read(_DIGEST), int.from_bytes(file.read(8), "little")
    told = file.read(min(length, _MOST_MANIFEST))
    if hashlib.sha256(told).digest() != digest:
        raise ValueError("its manifest was altered")
    manifest: dict[str, Any] = json.loads(told)
    return manifest


def _bytes(part: NDArray[np.generic]) -> memoryview:
    return part.reshape(-1).view(np.uint8).data
