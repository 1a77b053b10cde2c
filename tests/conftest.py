"""What every test may rely on, and what none may leave behind."""

import os
from pathlib import Path

import hypothesis
import pytest

from capkeep.kernel import landlock
from tests.host import NEWEST_LANDLOCK, host_filters

# How fast a machine is decides nothing: each test has a limit, and that is for what hangs.
hypothesis.settings.register_profile("capkeep", deadline=None)
hypothesis.settings.load_profile("capkeep")

UNIT = Path(__file__).parent / "unit"
LEFT: list[str] = []  # of the processes that ran the tests, if there were several


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Outside `unit`, tests need root on a real kernel: say so, and never pass over it in CI."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root on a real kernel")
    for item in items:
        if UNIT not in item.path.parents:
            if os.environ.get("CI"):
                raise pytest.UsageError(f"{item.nodeid} needs root, and CI must run every test")
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What this host keeps the suite from showing is said, so that nobody takes it for shown."""
    if landlock.abi() < NEWEST_LANDLOCK:
        terminalreporter.write_line(
            f"NOT SHOWN HERE: this host offers Landlock {landlock.abi()} of {NEWEST_LANDLOCK}",
            yellow=True,
        )
    if host_filters():
        terminalreporter.write_line(
            "NOT SHOWN HERE: a system call filter around this host stops attempts before a room does",
            yellow=True,
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that leaves processes behind has failed, whatever its tests say."""
    told: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if told is not None:  # one process of several: the one that started it decides
        told["left"] = _children(os.getpid())
        return
    if left := LEFT or _children(os.getpid()):
        report = session.config.pluginmanager.get_plugin("terminalreporter")
        if report is not None:
            report.write_line(f"processes left behind: {'; '.join(left)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Hear what one of several processes has left behind."""
    LEFT.extend(getattr(node, "workeroutput", {}).get("left", ()))


def _children(pid: int) -> list[str]:
    """Direct children that are still there, zombies included, each as `PID NAME`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, _, fields = (entry / "stat").read_text().rpartition(")")
            except OSError:
                continue
            if int(fields.split()[1]) == pid:
                found.append(f"{entry.name} {name.partition('(')[2]}")
    return found
