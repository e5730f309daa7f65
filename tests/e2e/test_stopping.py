"""However a hub is told to end, it ends in order."""

import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support import hub_process


def test_signals_that_repeat_do_not_cut_the_stop_short(tmp_path: Path) -> None:
    """A hub that gets SIGTERM again and again ends with 0, and so does its Postgres."""
    with hub_process(tmp_path / "data") as hub:
        hub.start()
        lock = hub.data_dir / "postgres" / "postmaster.pid"
        postgres = psutil.Process(int(lock.read_text().splitlines()[0]))
        process = hub.process
        assert process is not None
        while process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
        assert hub.stop() == 0
        assert not lock.exists()
        assert not postgres.is_running() or postgres.status() == psutil.STATUS_ZOMBIE
