"""Views on disk: what is read is what was written, or nothing; and forgotten is forgotten."""

import fcntl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from hub_server.retrieval import snapshots as module
from hub_server.retrieval.matrix import unit
from hub_server.retrieval.snapshots import Snapshots, Space
from hub_server.retrieval.view import Change, Dump, IndexedRow, View

_DIMENSION = 8
_SPACE = Space("tenant", "user", "memory", "model")


def _vector(seed: int) -> bytes:
    return np.random.default_rng(seed).standard_normal(_DIMENSION).astype("<f4").tobytes()


def _dump(rows: int = 20, first: int = 0) -> Dump:
    view = View(_DIMENSION, "en", 0)
    texts = ("quince", "medlar", "fig", "")
    view.apply(
        [
            Change(f"g{n}", n + 1, (IndexedRow(f"r{n}", texts[n % 4], _vector(n)),))
            for n in range(first, first + rows)
        ]
    )
    view.build(lambda: False)
    return view.dump()


def _snapshots(folder: Path) -> Snapshots:
    made = Snapshots(folder)
    made.clear()
    return made


def _file(folder: Path) -> Path:
    (file,) = folder.glob("*.view")
    return file


def _equal(ours: Dump | None, theirs: Dump) -> bool:
    return (
        ours is not None
        and ours.facts == theirs.facts
        and ours.parts.keys() == theirs.parts.keys()
        and all(np.array_equal(ours.parts[name], theirs.parts[name]) for name in ours.parts)
    )


@pytest.mark.parametrize("rows", [0, 1, 20])
def test_what_was_saved_is_loaded(tmp_path: Path, rows: int) -> None:
    """A dump comes back from disk as it went there, and only its owner may read the file."""
    snapshots, dump = _snapshots(tmp_path / "views"), _dump(rows)
    assert snapshots.load(_SPACE) is None
    assert snapshots.save(_SPACE, snapshots.epoch(_SPACE), dump)
    assert _equal(snapshots.load(_SPACE), dump)
    assert _file(tmp_path / "views").stat().st_mode & 0o077 == 0
    assert (tmp_path / "views").stat().st_mode & 0o077 == 0
    assert list((tmp_path / "views").glob("*.tmp")) == []


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_snapshot_is_no_snapshot(data: st.DataObject) -> None:
    """Cut short, prolonged, or with any byte altered, it is refused, removed, and no error."""
    with TemporaryDirectory() as folder:
        snapshots = _snapshots(Path(folder))
        snapshots.save(_SPACE, "", _dump())
        file = _file(Path(folder))
        whole = file.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        kind = data.draw(st.sampled_from(["cut", "longer", "altered"]))
        altered = bytes([whole[place] ^ data.draw(st.integers(1, 255))])
        damaged = {
            "cut": whole[:place],
            "longer": whole + altered,
            "altered": whole[:place] + altered + whole[place + 1 :],
        }[kind]
        file.write_bytes(damaged)
        assert snapshots.load(_SPACE) is None
        assert not file.exists()
        assert snapshots.load(_SPACE) is None


@pytest.mark.parametrize("field", ["tenant_id", "user_id", "kind", "embedding_model"])
def test_a_snapshot_of_another_space_is_refused(tmp_path: Path, field: str) -> None:
    """A file under another space's name is not taken for it."""
    snapshots, other = _snapshots(tmp_path), replace(_SPACE, **{field: "other"})
    snapshots.save(_SPACE, "", _dump())
    _file(tmp_path).rename(snapshots._file(other))
    assert snapshots.load(other) is None
    assert list(tmp_path.glob("*.view")) == []


def test_a_snapshot_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another format, graph or stemmer made is not mixed with what this code makes."""
    snapshots = _snapshots(tmp_path)
    for name in module._made_by():
        snapshots.save(_SPACE, snapshots.epoch(_SPACE), _dump())
        with monkeypatch.context() as changed:
            told = {**module._made_by(), name: "other"}
            changed.setattr(module, "_made_by", lambda told=told: told)
            assert snapshots.load(_SPACE) is None


def test_a_folder_in_place_of_a_snapshot_is_no_error(tmp_path: Path) -> None:
    """Whatever cannot be read, nor removed, counts as no snapshot."""
    snapshots = _snapshots(tmp_path)
    snapshots._file(_SPACE).mkdir()
    assert snapshots.load(_SPACE) is None


def test_forgetting_leaves_no_word_and_no_vector(tmp_path: Path) -> None:
    """Of the space no file of any model holds anything; other spaces keep theirs."""
    snapshots = _snapshots(tmp_path)
    other = replace(_SPACE, user_id="other")
    for space in (_SPACE, replace(_SPACE, embedding_model="old"), other):
        snapshots.save(space, "", _dump())
    (tmp_path / f"{snapshots._file(_SPACE).name}.left.tmp").write_bytes(b"medlar")
    snapshots.forget(_SPACE)
    assert list(tmp_path.glob("*.view")) == [snapshots._file(other)]
    snapshots.forget(other)
    held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"medlar" not in held
    assert _vector(0) not in held
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_view_from_before_is_not_saved_after_forgetting(tmp_path: Path) -> None:
    """Another process, which still holds what was erased, cannot bring it back to disk."""
    ours, theirs = _snapshots(tmp_path), _snapshots(tmp_path)
    epoch = theirs.epoch(_SPACE)
    ours.forget(_SPACE)
    assert not theirs.save(_SPACE, epoch, _dump())
    assert [file.suffix for file in tmp_path.iterdir()] == [".epoch"]
    assert theirs.save(_SPACE, theirs.epoch(_SPACE), _dump())
    ours.forget(_SPACE)
    ours.forget(_SPACE)
    assert [file.suffix for file in tmp_path.iterdir()] == [".epoch"]


@pytest.mark.parametrize("altered", [b"", b"abc not a seq", b"\xff\xfe", b" -1"])
def test_an_epoch_that_was_altered_is_another_one(tmp_path: Path, altered: bytes) -> None:
    """It is no error: what was begun before is not saved, what begins then is."""
    snapshots = _snapshots(tmp_path)
    snapshots.forget(_SPACE)
    before = snapshots.epoch(_SPACE)
    snapshots._epoch_file(_SPACE).write_bytes(altered)
    assert not snapshots.save(_SPACE, before, _dump())
    assert snapshots.save(_SPACE, snapshots.epoch(_SPACE), _dump())
    snapshots.outdate(_SPACE, 21)
    assert snapshots.save(_SPACE, snapshots.epoch(_SPACE), _dump(20)) is None


def test_what_was_removed_is_in_no_file_that_is_written_later(tmp_path: Path) -> None:
    """Snapshots of the space go at once; only views that have followed the removal are written."""
    snapshots = _snapshots(tmp_path)
    other = replace(_SPACE, user_id="other")
    for space in (_SPACE, replace(_SPACE, embedding_model="old"), other):
        assert snapshots.save(space, "", _dump())
    (tmp_path / f"{snapshots._file(_SPACE).name}.left.tmp").write_bytes(b"medlar")
    snapshots.outdate(_SPACE, 21)
    snapshots.outdate(_SPACE, 20)  # told late
    assert list(tmp_path.glob("*.view")) == [snapshots._file(other)]
    assert list(tmp_path.glob("*.tmp")) == []
    assert snapshots.save(_SPACE, snapshots.epoch(_SPACE), _dump(20)) is None
    assert snapshots.load(_SPACE) is None
    assert snapshots.save(_SPACE, snapshots.epoch(_SPACE), _dump(21))
    snapshots.forget(_SPACE)
    assert snapshots.save(_SPACE, snapshots.epoch(_SPACE), _dump(20))


def test_a_dump_has_nothing_of_rows_that_are_gone() -> None:
    """Neither their words nor their vectors, in the graph neither; and it finds all others."""
    view = View(_DIMENSION, "en", 0)
    changes = [
        Change(f"g{n}", n + 1, (IndexedRow(f"r{n}", f"word{n} fig", _vector(n)),))
        for n in range(90)
    ]
    view.apply(changes)
    view.build(lambda: False)
    gone = range(10, 24)  # so few that nothing is moved together for them
    view.apply([Change(f"g{n}", 100 + n, ()) for n in gone])
    assert view.dead == len(gone)
    dump = view.dump()
    held = b"".join(part.tobytes() for part in dump.parts.values())
    vectors = {
        n: unit(np.frombuffer(_vector(n), "<f4")[np.newaxis], _DIMENSION)[0] for n in range(90)
    }
    for n, vector in vectors.items():
        assert (f"word{n}\0".encode() in held) == (n not in gone)
        assert (vector.tobytes() in held) == (n not in gone)
    loaded = View.load(dump, 0)
    assert loaded.in_graph == 90 - len(gone)
    for n, vector in vectors.items():
        nearest = loaded.search("", vector, 1)[0]
        assert (nearest.row_id == f"r{n}") == (n not in gone)
        assert loaded.search(f"word{n}", None, 9) == view.search(f"word{n}", None, 9)


def test_forgetting_amid_a_save_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space that is forgotten while its snapshot is being written gets none."""
    snapshots = _snapshots(tmp_path)
    write = module._write

    def written(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        _snapshots(tmp_path).forget(_SPACE)

    monkeypatch.setattr(module, "_write", written)
    assert not snapshots.save(_SPACE, "", _dump())
    assert [file.suffix for file in tmp_path.iterdir()] == [".epoch"]


def test_forgetting_just_before_a_save_begins_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look at the epoch and the first byte, too: no removal sees that file."""
    snapshots, temporary = _snapshots(tmp_path), module._temporary

    def late(file: Path) -> object:
        _snapshots(tmp_path).forget(_SPACE)
        return temporary(file)

    monkeypatch.setattr(module, "_temporary", late)
    assert not snapshots.save(_SPACE, "", _dump())
    assert [file.suffix for file in tmp_path.iterdir()] == [".epoch"]


def test_a_failed_save_keeps_the_snapshot_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk is full, what was there before stays, and nothing half written does."""
    snapshots, dump = _snapshots(tmp_path), _dump()
    snapshots.save(_SPACE, "", dump)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        snapshots.save(_SPACE, "", _dump(5))
    assert list(tmp_path.glob("*.tmp")) == []
    assert _equal(snapshots.load(_SPACE), dump)


def test_what_killed_processes_left_is_removed_at_the_start(tmp_path: Path) -> None:
    """A temporary file nobody writes is removed; one that is being written stays."""
    left, written = tmp_path / "a.view.1.tmp", tmp_path / "b.view.2.tmp"
    left.write_bytes(b"medlar")
    with written.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _snapshots(tmp_path)
        assert list(tmp_path.iterdir()) == [written]
    _snapshots(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_many_writers_and_readers_see_whole_snapshots(tmp_path: Path) -> None:
    """Whoever saves, loads or starts meanwhile: each load gives one of the dumps, whole."""
    dumps, ended = [_dump(10, first) for first in (0, 10, 20)], threading.Event()
    _snapshots(tmp_path).save(_SPACE, "", dumps[0])

    def save(dump: Dump) -> None:
        for _ in range(15):
            assert _snapshots(tmp_path).save(_SPACE, "", dump)

    def load() -> int:
        loads = 0
        while not ended.is_set():
            loaded = _snapshots(tmp_path).load(_SPACE)
            assert any(_equal(loaded, dump) for dump in dumps)
            loads += 1
        return loads

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(load) for _ in range(2)]
        for writer in [pool.submit(save, dump) for dump in dumps]:
            writer.result()
        ended.set()
        assert all(reader.result() > 0 for reader in readers)
