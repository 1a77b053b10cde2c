"""The timers of a plan's schedules, and of the watch that finds runs which did not happen; pure.

Sources: systemd.timer(5), systemd.exec(5) of systemd 252 to 262.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Final

from capkeep.host import hardening, unit_text
from capkeep.host.unit_text import Unit
from capkeep.kernel.process import python
from capkeep.plan.model import Plan
from capkeep.plan.timetable import Timetable, whole

# It shows a process of its own user what runs on this host: whether power and network are there.
_NOT_HERE: Final = ("ProtectProc", "ProcSubset")


def names(plan: Plan) -> tuple[str, ...]:
    """The timers, which are started at boot and by `apply`."""
    tables = whole(plan)
    watch = (f"{watch_name(plan)}.timer",) if tables or plan.after_pulls else ()
    return (*(f"{plan.name}-{table.unit}.timer" for table in tables), *watch)


def watch_name(plan: Plan) -> str:
    """The watch's units, without suffix."""
    return f"{plan.name}-watch"


def units(plan: Plan, host_facts: str) -> Iterator[Unit]:
    """A timer and what it starts for each kind of run of each job, and the watch over them."""
    tables = whole(plan)
    for table in tables:
        yield _timer(plan, table)
        yield _service(plan, table, host_facts)
    if tables or plan.after_pulls:
        yield from _watch(plan, host_facts)


def _timer(plan: Plan, table: Timetable) -> Unit:
    spread = (f"RandomizedDelaySec={table.spread_seconds}", "FixedRandomDelay=yes")
    what = f"capkeep: when to run job {table.job} ({table.kind})"
    return Unit(
        f"{plan.name}-{table.unit}.timer",
        unit_text.text([
            "[Unit]",
            f"Description={unit_text.plain(what)}",
            "",
            "[Timer]",
            *(f"OnCalendar={text}" for text in table.calendar),
            "Persistent=yes",
            "AccuracySec=1s",
            *(spread if table.spread_seconds else ()),
            "",
            "[Install]",
            "WantedBy=timers.target",
        ]),
    )  # fmt: skip


def _service(plan: Plan, table: Timetable, host_facts: str) -> Unit:
    words = ("due", table.job, *(() if table.kind == "backup" else ("--kind", table.kind)))
    return Unit(
        f"{plan.name}-{table.unit}.service",
        unit_text.text([
            "[Unit]",
            f"Description={unit_text.plain(f'capkeep: run job {table.job} ({table.kind})')}",
            f"Wants={plan.name}-{plan.runner.name}.socket",
            "",
            *_process(plan, words, host_facts),
        ]),
    )  # fmt: skip


def _watch(plan: Plan, host_facts: str) -> Iterator[Unit]:
    name = watch_name(plan)
    every = plan.watch.every_seconds
    yield Unit(
        f"{name}.timer",
        unit_text.text([
            "[Unit]",
            "Description=capkeep: when to look for runs that should have happened",
            "",
            "[Timer]",
            # By a clock that nobody sets, and soon after the machine was started or asleep.
            f"OnActiveSec={min(every, 120)}s",
            f"OnUnitActiveSec={every}s",
            f"AccuracySec={min(30, max(1, every // 10))}s",
            "",
            "[Install]",
            "WantedBy=timers.target",
        ]),
    )  # fmt: skip
    yield Unit(
        f"{name}.service",
        unit_text.text([
            "[Unit]",
            "Description=capkeep: look for runs that should have happened",
            f"Wants={plan.name}-{plan.runner.name}.socket",
            "",
            *_process(plan, ("watch",), host_facts),
            f"BindPaths={unit_text.word(plan.places.records)}",
            # A directory for metrics may be gone; the watch looks all the same.
            *([f"BindPaths=-{unit_text.word(plan.metrics)}"] if plan.metrics else ()),
        ]),
    )  # fmt: skip


def _process(plan: Plan, words: Iterable[str], host_facts: str) -> tuple[str, ...]:
    """A command of capkeep's own as the runner's user, without any privilege or network."""
    runner = plan.runner.grant
    program = (plan.interpreter, *python(plan.package, "capkeep.__main__"))
    prefix = ("--prefix", os.path.dirname(plan.places.config))
    where = () if plan.places.is_system else prefix
    return (
        "[Service]",
        "Type=oneshot",
        f"ExecStart={unit_text.command((*program, *where, *words))}",
        f"User={runner.uid}",
        f"Group={runner.gid}",
        "CapabilityBoundingSet=",
        *(line for line in hardening.HARDENING if not line.startswith(_NOT_HERE)),
        "PrivateNetwork=yes",
        "RestrictAddressFamilies=AF_UNIX",
        # It runs as the runner's user, and systemd reads what is in there as root.
        f"InaccessiblePaths=-{unit_text.word(os.path.dirname(host_facts))}",
    )
