"""The README's examples and the demo, run as a newcomer runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import hub_process

ROOT = Path(__file__).parent.parent.parent


def blocks(file: str, name: str) -> list[str]:
    """Return the code blocks of a file that are marked `<!-- test: name -->`."""
    text = (ROOT / file).read_text()
    return re.findall(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(
    ("name", "command", "shown"),
    [
        ("grpcurl", ["bash", "-euo", "pipefail", "-c"], ("Sencha is brewed at 80", "September")),
        (
            "python",
            [sys.executable, "-c"],
            ("as it should be", "back again: Cleo drinks green", "nearest: Swans sleep on lakes."),
        ),
    ],
)
def test_the_examples_work_when_pasted(
    tmp_path: Path, name: str, command: list[str], shown: tuple[str, ...]
) -> None:
    """Each runs twice in a row, with a hub in .hub, prints what it promises, leaves no file."""
    with hub_process(tmp_path / ".hub") as hub:
        address = hub.start()
        scripts = blocks("README.md", name) + blocks("docs/examples.md", name)
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        for script, words in 2 * list(zip(scripts, shown, strict=True)):
            run = subprocess.run(
                [*command, script.replace("127.0.0.1:50051", address)],
                cwd=tmp_path,
                env=os.environ | {"PATH": tools, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert run.returncode == 0, run.stderr
            assert words in run.stdout
            assert {one.name for one in tmp_path.iterdir()} == {".hub", ".hub.log"}


def run_demo(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demo over the documentation to its end."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.demo", "--corpus", "docs"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_demo_tells_its_whole_story() -> None:
    """It ends with 0 after a restart, a context, and a user who was erased and brought back."""
    demo = run_demo()
    assert demo.returncode == 0, demo.stdout + demo.stderr
    for said in ("search results: all there", "its record: all there", "Recall: NOT_FOUND"):
        assert said in demo.stdout
    assert "records: all there" in demo.stdout


def test_the_demo_fails_when_the_hub_does_not_start() -> None:
    """A hub that cannot start is a failure, not a story."""
    demo = run_demo(HUB_POOL_SIZE="none")
    assert demo.returncode == 1
    assert "HUB_POOL_SIZE" in demo.stdout
