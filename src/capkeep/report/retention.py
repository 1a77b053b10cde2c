"""What stays of a job's snapshots, and why, as a table."""

from capkeep.report.story import text_of
from capkeep.report.text import clean, table
from capkeep.rooms.protocol import Message


def decision_lines(told: list[Message]) -> list[str]:
    """From what the runner told: for each repository of each job a table and a sentence."""
    lines: list[str] = []
    job, rows = "", list[list[str]]()
    for message in told:
        event = text_of(message, "event")
        if event == "run":
            job = clean(text_of(message, "job"))
        elif event == "step":
            lines += [""] if lines else []
            lines.append(f"{job} in {clean(text_of(message, 'repository'))}:")
        elif event == "decision":
            rows.append(_row(message))
        elif event == "part":
            heading = ["snapshot", "time", "state", "", "why"]
            lines += [f"  {line}" for line in (table([heading, *rows]) if rows else [])]
            lines.append(f"  {clean(text_of(message, 'text'))}")
            rows = []
    return lines


def _row(message: Message) -> list[str]:
    why = message.get("why")
    return [
        clean(text_of(message, "id"))[:8],
        clean(text_of(message, "time"))[:19].replace("T", " "),
        "complete" if message.get("complete") is True else "partial",
        "stays" if message.get("keep") is True else "goes",
        clean(", ".join(map(str, why))) if isinstance(why, list) else "",
    ]
