"""The account of a run for people who did not ask for it: a title, a few lines, a text, a page."""

import html
from typing import Final, NamedTuple

from capkeep import __version__
from capkeep.errors import Failure
from capkeep.records.model import FindingKind, Outcome, Run
from capkeep.report.story import StepStory, Story
from capkeep.report.style import Style
from capkeep.report.summary import summary
from capkeep.report.text import clean, duration, moment, number, size
from capkeep.rooms.protocol import MAX_LINE, Message, encode

TITLE_LIMIT: Final = 160
TEXT_LIMIT: Final = 2_000  # characters of one sentence
WORDS_LIMIT: Final = 4_000  # characters of what an engine said; its end tells most
REASONS: Final = 20
REPORT_LIMIT: Final = MAX_LINE // 2  # bytes
_PLAIN: Final = Style(colour=False)
_COLOURS: Final = {
    Outcome.COMPLETE: "#1a7f37",
    Outcome.PARTIAL: "#9a6700",
    Outcome.FAILED: "#cf222e",
    Outcome.MISSED: "#cf222e",
}
_NEXT: Final = {
    Failure.NO_REPOSITORY: "Look whether the repository's place is there; `capkeep init` makes a new one.",
    Failure.LOCKED: "Find out who else works on the repository (`capkeep status`), and wait for it.",
    Failure.WRONG_PASSWORD: "Compare the repository's password with the copy that you keep elsewhere.",
    Failure.DAMAGED: "Change nothing in the repository until you know why; restore what you need from it.",
    Failure.DUMP: "Restore that dump and load it by hand to see why; the repository is not in doubt.",
    Failure.NO_SPACE: "Make room where the message says, then run the job again.",
    Failure.UNREACHABLE: "See whether the repository's server answers; the next run tries again.",
    Failure.DENIED: "Renew the credentials of the repository's server.",
    Failure.TIMEOUT: "Find out what takes so long (the log has times), or allow a longer timeout.",
    Failure.WEAKENED: "`capkeep audit` says which protection is missing, and what mends it.",
    Failure.STOPPED: "Somebody stopped it; run it again: capkeep run JOB",
    Failure.INTERRUPTED: "The run was cut off; the next one tidies up after it.",
}


class Words(NamedTuple):
    """One run in several lengths."""

    title: str  # one line
    short: str  # a few lines
    text: str  # all but the log
    html: str  # the same as a page


def words(story: Story, host: str) -> Words:
    """What is told of a run."""
    story = _bounded(story)
    title = _title(story.run, host)
    steps = next_steps(story)
    return Words(
        title, _short(story, title), _text(story, title, steps), _html(story, title, steps)
    )


def plain_report(story: Story, host: str) -> Message:
    """All that a notifier is told of a run: words for people, and data for programs.

    It fits in one message, whatever rooms have said; what does not is in the log.
    """
    report = _report(story, host)
    if len(encode(report)) > REPORT_LIMIT:
        bare = (t._replace(findings=(), step=t.step._replace(engine_words="")) for t in story.steps)
        report = _report(story._replace(steps=tuple(bare)), host)
    if len(encode(report)) > REPORT_LIMIT:
        report |= {"text": report["short"], "html": "", "steps": []}
    return report


def _report(story: Story, host: str) -> Message:
    bounded = _bounded(story)
    return {
        **words(story, host)._asdict(), "capkeep": __version__,
        "run": {**bounded.run._asdict(), "reasons": list(bounded.run.reasons)},
        "steps": [_plain_step(told) for told in bounded.steps],
    }  # fmt: skip


def _plain_step(told: StepStory) -> Message:
    return {
        **told.step._asdict(), "totals": told.step.totals._asdict(), "found": dict(told.counts),
    }  # fmt: skip


def _bounded(story: Story) -> Story:
    """A hostile room may have said anything, at any length."""
    run = story.run._replace(
        text=story.run.text[:TEXT_LIMIT],
        reasons=tuple(reason[:TEXT_LIMIT] for reason in story.run.reasons[:REASONS]),
    )
    steps = tuple(_bounded_step(told) for told in story.steps[:REASONS])
    return story._replace(run=run, steps=steps)


def _bounded_step(told: StepStory) -> StepStory:
    step = told.step._replace(
        text=told.step.text[:TEXT_LIMIT], engine_words=told.step.engine_words[-WORDS_LIMIT:]
    )
    findings = (
        f._replace(path=f.path[:TEXT_LIMIT], cause=f.cause[:100], detail=f.detail[:200])
        for f in told.findings
    )
    return told._replace(step=step, findings=tuple(findings))


def _what(run: Run) -> str:
    return clean(f"{run.action} of {run.job}" if run.job else run.action)


def _title(run: Run, host: str) -> str:
    outcome = run.outcome or Outcome.FAILED
    shown = outcome if outcome is Outcome.COMPLETE else outcome.upper()
    why = f": {clean(run.text)}" if run.text and outcome is not Outcome.COMPLETE else ""
    title = f"[capkeep] {shown}: {_what(run)} on {clean(host)}{why}"
    return title if len(title) <= TITLE_LIMIT else title[: TITLE_LIMIT - 1] + "…"


def _short(story: Story, title: str) -> str:
    run = story.run
    lines = [title.removeprefix("[capkeep] ")]
    lines += [clean(reason) for reason in run.reasons if reason != run.text][:5]
    for told in story.steps:
        totals = told.step.totals
        if totals.total_files:
            lines.append(
                f"{clean(told.step.repository)}: {number(totals.total_files)} files,"
                f" {size(totals.bytes_processed)}, {size(totals.bytes_added)} new"
            )
    if run.seconds:
        lines.append(f"took {duration(run.seconds)}")
    return "\n".join(lines)


def proven(story: Story) -> str:
    """What the privilege proofs come to, in a sentence."""
    proofs = {(p.room, p.process): p for told in story.steps for p in told.proofs}
    weak = [clean(text) for proof in proofs.values() for text in proof.weaker]
    if not proofs:
        return "No process has proven its privileges."
    if weak:
        return f"WEAKER THAN GRANTED: {'; '.join(weak)[:TEXT_LIMIT]}"
    count = len({room for room, _ in proofs})
    rooms = "1 room" if count == 1 else f"{count} rooms"
    return (
        f"{len(proofs)} processes in {rooms} have proven that they had no more rights than granted."
    )


def next_steps(story: Story) -> list[str]:
    """What to do now, if anything."""
    run = story.run
    if run.outcome is Outcome.COMPLETE:
        return []
    steps = [_NEXT[run.failure]] if run.failure in _NEXT else []
    unread = sum(dict(told.counts).get(FindingKind.UNREADABLE, 0) for told in story.steps)
    if unread:
        steps.append("Make readable what should be kept; name under `may-miss` what need not be.")
    steps.append(f"The whole story: capkeep log {clean(run.id)}")
    return steps


def _text(story: Story, title: str, steps: list[str]) -> str:
    run = story.run
    bare = story._replace(proofs=(), steps=tuple(t._replace(proofs=()) for t in story.steps))
    lines = [title.removeprefix("[capkeep] "), ""]
    lines += summary(bare, _PLAIN)
    lines += ["", f"began {moment(run.started)}, asked for by {_asker(run)}", proven(story)]
    if steps:
        lines += ["", "Next:", *(f"  - {step}" for step in steps)]
    return "\n".join(lines) + "\n"


def _asker(run: Run) -> str:
    return clean(run.trigger_user) or f"uid {run.trigger_uid}"


def _html(story: Story, title: str, steps: list[str]) -> str:
    run = story.run
    colour = _COLOURS.get(run.outcome or Outcome.FAILED, "#cf222e")
    reasons = [r for r in dict.fromkeys([*run.reasons, run.text]) if r]
    why = reasons if run.outcome is not Outcome.COMPLETE else []
    parts = [
        '<!DOCTYPE html><html><head><meta charset="utf-8"><title>', _safe(title),
        '</title></head><body style="font-family:sans-serif;max-width:50em">',
        f'<h1 style="font-size:1.3em;color:#fff;background:{colour};padding:.5em">',
        _safe(title.removeprefix("[capkeep] ")), "</h1>", _items(why),
        *(_html_step(told) for told in story.steps),
        f"<p>Began {_safe(moment(run.started))}, asked for by {_safe(_asker(run))}"
        + (f", took {_safe(duration(run.seconds))}" if run.seconds else "") + ".</p>",
        f"<p>{_safe(proven(story))}</p>",
        "<h2 style='font-size:1.1em'>Next</h2>" + _items(steps) if steps else "",
        f'<p style="color:#666;font-size:.85em">run {_safe(run.id)}, capkeep {__version__}</p>',
        "</body></html>",
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _html_step(told: StepStory) -> str:
    step, totals = told.step, told.step.totals
    rows = [
        ("outcome", str(step.outcome or "failed") + (f" ({step.failure})" if step.failure else ""))
    ]
    if totals.total_files:
        rows += [
            ("kept", f"{number(totals.total_files)} files, {size(totals.bytes_processed)}"),
            ("new files", number(totals.files_new)),
            ("changed files", number(totals.files_changed)),
            ("unchanged files", number(totals.files_unmodified)),
            ("new data", f"{size(totals.bytes_added)}, stored as {size(totals.bytes_stored)}"),
        ]
    if step.seconds:
        rows.append(("took", duration(step.seconds)))
    if step.snapshot:
        rows.append(("snapshot", step.snapshot[:8]))
    if step.engine:
        rows.append(("engine", step.engine))
    cells = "".join(
        f'<tr><td style="color:#666;padding-right:1em">{_safe(k)}</td><td>{_safe(v)}</td></tr>'
        for k, v in rows
    )
    heading = f"{clean(step.kind)} {clean(step.repository)}"
    found = "".join(_html_findings(told, kind, said) for kind, said in _KINDS)
    said = f"<pre>{html.escape(_lines(step.engine_words))}</pre>" if step.engine_words else ""
    return f"<h2 style='font-size:1.1em'>{_safe(heading)}</h2><table>{cells}</table>{found}{said}"


_KINDS: Final = ((FindingKind.UNREADABLE, "not read"), (FindingKind.WARNING, "warnings"))


def _html_findings(told: StepStory, kind: FindingKind, title: str) -> str:
    total = dict(told.counts).get(kind, 0)
    if not total:
        return ""
    shown = [f for f in told.findings if f.kind is kind]
    items = [" ".join(p for p in (f.path, f.cause, f.detail) if p) for f in shown]
    if total > len(shown):
        items.append(f"… and {number(total - len(shown))} more")
    return f"<p><b>{_safe(title)}: {number(total)}</b></p>" + _items(items)


def _items(texts: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{_safe(text)}</li>" for text in texts) + "</ul>" if texts else ""


def _safe(text: str) -> str:
    return html.escape(clean(text))


def _lines(text: str) -> str:
    return "\n".join(clean(line) for line in text.rstrip().expandtabs().split("\n"))
