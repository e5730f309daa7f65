"""However a hub is told to end, it ends in order."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_broken_off_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C or SIGTERM amid the demo ends its hub and its Postgres and removes their folder."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "scripts.demo"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(tmp_path), "HUB_EMBEDDING": "wordllama"},
        stdout=subprocess.DEVNULL,
        # Whoever runs tests in the background ignores SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 60
    while not (locks := list(tmp_path.glob("hub-demo-*/data/postgres/postmaster.pid"))):
        assert demo.poll() is None
        assert time.monotonic() < deadline
    hub = psutil.Process(demo.pid).children()
    demo.send_signal(number)
    assert demo.wait(60) == 130
    assert psutil.wait_procs(hub, timeout=30)[1] == []
    assert not locks[0].exists()
    assert not list(tmp_path.glob("hub-demo-*"))
