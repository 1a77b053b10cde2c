"""Dumps in a run: they come before the backups, whose snapshots hold what they have written."""

from capkeep.errors import Failure
from capkeep.plan.model import Job, Plan
from capkeep.records.model import Step
from capkeep.rooms.protocol import Message
from capkeep.run.errand import SLACK_SECONDS, Errand, Errands, Feeder


def dump_errands(plan: Plan, job: Job, name: str) -> Errands:
    """What is asked of a dump's room, and of the readers into whose repositories it is streamed."""
    dump = plan.dump(name)
    room = next(r for r in plan.rooms if r.dump == name)
    seconds = dump.timeout_seconds + SLACK_SECONDS
    if not dump.stream:
        yield Errand("dump", room, {"action": "dump", "options": {}}, seconds,
                     optional=dump.optional)  # fmt: skip
        return
    files: list[str] = []

    def note(result: Message) -> None:
        found = result.get("files")
        files.extend(map(str, found if isinstance(found, list) else ()))

    yield Errand("dump", room, {"action": "list", "options": {}}, seconds,
                 optional=dump.optional, on_result=note)  # fmt: skip
    for repository in job.repositories:
        reader = plan.room(f"reader-{job.name}-{repository}")
        for file in files:
            feeder = Feeder(room, {"action": "stream", "options": {"file": file}})
            request: Message = {"action": "stream", "options": {"dump": name, "file": file}}
            yield Errand("stream", reader, request, seconds, optional=dump.optional,
                         feeder=feeder)  # fmt: skip


def counted(asked: list[Errand], done: list[Step]) -> list[Step]:
    """The steps that make a run's outcome: all but optional ones that failed by themselves."""
    kept = [
        step
        for errand, step in zip(asked, done, strict=True)
        if not (errand.optional and step.failure not in (None, Failure.STOPPED))
    ]
    return kept or done
