"""Machines for the tests of this folder, and what they said when one fails."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.lab import trees
from tests.lab.host import obstacle
from tests.lab.machine import Machine

FOLDER: Final = Path(__file__).parent
REPORT: Final = 60_000  # characters of a machine's report that are shown; the newest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where no machine can exist nothing here is shown; that is said, and is a failure in CI."""
    why = obstacle() if os.geteuid() == 0 else ""
    for item in items if why else ():
        if item.path.is_relative_to(FOLDER):
            if os.environ.get("CI"):
                raise pytest.UsageError(f"{item.nodeid} needs a booted machine: {why}")
            item.add_marker(pytest.mark.skip(reason=f"NOT SHOWN HERE: {why}"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch Debian before the first test, whose time is limited."""
    ours = [item for item in session.items if item.path.is_relative_to(FOLDER)]
    if ours and not session.config.option.collectonly and os.geteuid() == 0 and not obstacle():
        with contextlib.suppress(OSError, LookupError, subprocess.SubprocessError):
            for suite in trees.SUITES:  # what cannot be had fails the test that wants it
                trees.product(suite)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.geteuid() == 0 and (why := obstacle()):
        terminalreporter.write_line(f"NOT SHOWN HERE: no booted machine: {why}", yellow=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # fmt: skip
    """A failure shows the console and the journal of every machine that took part in it."""
    report = yield
    if report.failed:
        said = Machine.told | {m.name: m.report() for m in Machine.alive}
        for name, text in said.items():
            report.sections.append((f"machine {name}", text[-REPORT:]))
    if call.when == "teardown":
        Machine.told.clear()
    return report


@pytest.fixture(params=trees.SUITES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A fresh machine of each Debian release, with capkeep installed."""
    with Machine(request.param) as machine:
        yield machine
