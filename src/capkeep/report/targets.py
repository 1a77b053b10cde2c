"""Targets for people and machines: how each is, which keys it shows, whether it answers."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from capkeep.config.quoting import toml
from capkeep.host.reach import Reached
from capkeep.host.scan import Seen, Word, is_alarming
from capkeep.plan.model import Target
from capkeep.records.judge import Verdict
from capkeep.report.style import Style
from capkeep.report.text import clean, duration, table

ALARM: Final = (
    "THIS IS NOT THE KEY THAT IS WRITTEN. Somebody may stand between you and this host.",
    "Nothing is sent there as long as it is so. If its keys are new, its owner can tell you their",
    "fingerprints: only then write the new one.",
)


class TargetReport(NamedTuple):
    """One target, its groups, and how the jobs are that take files of it."""

    target: Target
    groups: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


def as_plain(reports: Iterable[TargetReport]) -> list[dict[str, object]]:
    """As JSON values."""
    return [
        {
            "target": r.target.name, "host": r.target.host, "port": r.target.port,
            "user": r.target.user, "jump": r.target.jump or None, "groups": list(r.groups),
            "jobs": [{"job": v.job, "state": v.state, "text": v.text} for v in r.verdicts],
        }
        for r in reports
    ]  # fmt: skip


def lines(reports: Iterable[TargetReport]) -> list[str]:
    """A table, a line for each job."""
    rows = [["target", "host", "groups", "job", "state"]]
    for r in reports:
        host = r.target.host if r.target.port == 22 else f"{r.target.host} port {r.target.port}"
        first = [clean(r.target.name), clean(host), clean(" ".join(r.groups))]
        for verdict in r.verdicts:
            rows.append([*first, clean(verdict.job), str(verdict.state)])
            first = ["", "", ""]
    if len(rows) == 1:
        return ["no job takes files of another host: see targets in docs/how-to/pull.md"]
    return table(rows)


def plain_keys(seen: Iterable[Seen]) -> list[dict[str, object]]:
    """Keys as JSON values."""
    return [
        {
            "key": one.key.plain, "type": one.key.kind, "fingerprint": one.key.fingerprint,
            "pinned": one.word is Word.PINNED, "word": one.word,
        }
        for one in seen
    ]  # fmt: skip


def key_lines(
    setting: str, place: str, name: str, seen: tuple[Seen, ...], style: Style
) -> list[str]:
    """What a host shows, and what to write once it has been compared."""
    said = [style.bold(clean(place))]
    rows = [[one.key.kind, one.key.fingerprint, str(one.word)] for one in seen]
    for one, row in zip(seen, table(rows), strict=True):
        bad, good = one.word in (Word.CHANGED, Word.GONE), one.word is Word.PINNED
        said.append(f"  {style.bad(row) if bad else style.good(row) if good else row}")
    if is_alarming(seen):
        return [*said, "", *map(style.bad, ALARM), ""]
    if any(one.word is Word.PINNED for one in seen):
        return [*said, f"  {setting} is as it is written", ""]
    best = seen[0].key
    file = best.kind.removeprefix("ssh-").partition("-")[0]
    return [
        *said, "",
        "Compare the fingerprint with what its owner says. On that host:",
        f"  ssh-keygen -lf /etc/ssh/ssh_host_{file}_key.pub",
        f"If it is the same, write in [targets.{clean(name)}]:",
        f"  {setting} = {toml([best.plain])}", "",
    ]  # fmt: skip


def reached_lines(one: Reached, style: Style) -> list[str]:
    """A line for a target that answers, and the reason of one that does not."""
    who = clean(f"{one.target} ({one.job} into {one.repository})")
    if not one.failure:
        return [f"{style.good('answers')}  {who}: {clean(one.engine)}, {duration(one.seconds)}"]
    said = [f"{style.bad(clean(one.failure))}  {who}: {clean(one.text)}"]
    return [*said, *([f"  hint: {clean(one.hint)}"] if one.hint else [])]
