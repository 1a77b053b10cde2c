"""What every test may rely on, and what none may leave behind."""

import os
from pathlib import Path

import pytest

UNIT = Path(__file__).parent / "unit"


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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that leaves processes behind has failed, whatever its tests say."""
    if left := _children(os.getpid()):
        report = session.config.pluginmanager.get_plugin("terminalreporter")
        if report is not None:
            report.write_line(f"processes left behind: {'; '.join(left)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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
