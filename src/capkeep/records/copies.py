"""What is known of copies: how the last one into each repository ended, and when one was complete."""

from typing import NamedTuple

from capkeep.records.queries import Records


class Copied(NamedTuple):
    """A job's copies into one repository."""

    job: str
    repository: str  # that is copied into
    started: float  # of the last copy that ended
    passed: bool
    text: str
    last_passed: float | None  # when the last complete one began


def copied(records: Records) -> tuple[Copied, ...]:
    """For each job and repository into which it copies."""
    sql = (
        "SELECT run.job, step.repository, step.started, step.outcome = 'complete', step.text, ("
        " SELECT max(s.started) FROM step s JOIN run r ON r.number = s.run WHERE s.kind = 'copy'"
        " AND s.outcome = 'complete' AND r.job = run.job AND s.repository = step.repository)"
        " FROM step JOIN run ON run.number = step.run WHERE step.number IN ("
        " SELECT max(step.number) FROM step JOIN run ON run.number = step.run"
        " WHERE step.kind = 'copy' AND step.outcome IS NOT NULL GROUP BY run.job, step.repository)"
        " ORDER BY run.job, step.repository"
    )
    return tuple(
        Copied(
            str(job), str(repository), float(str(started)), bool(passed), str(text),
            None if last is None else float(str(last)),
        )
        for job, repository, started, passed, text, last in records.ask(sql, ())
    )  # fmt: skip
