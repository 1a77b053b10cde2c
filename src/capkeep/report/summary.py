"""The account of an ended run for people: outcome first, then why, then how much."""

from typing import Final

from capkeep.records.model import FindingKind, Outcome
from capkeep.report.proof import proof_in_full, proof_table
from capkeep.report.story import StepStory, Story
from capkeep.report.style import Style
from capkeep.report.text import clean, clean_lines, duration, number, size

_FOUND: Final = (
    "diff",
    "check",
    "retention",
    "drill",
    "copy",
)  # what they found is why they were made
_TITLES: Final = {
    FindingKind.UNREADABLE: "not read",
    FindingKind.LEFT_OUT: "left out",
    FindingKind.MAY_MISS: "not read, as the job allows (may-miss)",
    FindingKind.WARNING: "warnings",
    FindingKind.DIFFERENCE: "not as it should be",
}


def summary(story: Story, style: Style, *, full_proof: bool = False) -> list[str]:
    """All lines of it."""
    lines = [headline(story, style)]
    reasons = _reasons(story)
    lines += [f"  because {clean(reason)}" for reason in reasons]
    hints = dict.fromkeys([told.hint for told in story.steps] + [story.hint])
    lines += [f"  hint: {clean(hint)}" for hint in hints if hint]
    for told in story.steps:
        lines += [""] + [f"  {line}" for line in _step(told, style, reasons)]
    proofs = (*story.proofs, *(proof for told in story.steps for proof in told.proofs))
    if proofs:
        lines += ["", "  " + style.bold("privilege proof, as the kernel told each process:")]
        lines += [f"  {line}" for line in (proof_in_full if full_proof else proof_table)(proofs)]
    return lines


def headline(story: Story, style: Style) -> str:
    """The run in one line."""
    run = story.run
    what = f"{run.action} of {run.job}" if run.job else run.action
    words = [style.verdict(run.outcome or "running")]
    if run.failure:
        words.append(f"({run.failure})")
    line = f"{clean(what)}: {' '.join(words)}"
    took = f" in {duration(run.seconds)}" if run.seconds else ""
    return line + style.dim(f"  [run {clean(run.id)}{took}]")


def _reasons(story: Story) -> list[str]:
    """Why the run is not complete, each reason once."""
    run = story.run
    if run.outcome is Outcome.COMPLETE:
        return []
    return [reason for reason in dict.fromkeys([*run.reasons, run.text]) if reason]


def step_line(told: StepStory, style: Style) -> str:
    """A step in one line."""
    step, totals = told.step, told.step.totals
    parts = [style.verdict(step.outcome or "running")]
    if step.failure:
        parts[0] += f" ({step.failure})"
    if totals.total_files:
        parts.append(f"{number(totals.total_files)} files, {size(totals.bytes_processed)}")
    if step.snapshot:
        parts.append(f"{size(totals.bytes_added)} new")
        parts.append(f"snapshot {clean(step.snapshot[:8])}")
    if step.seconds:
        parts.append(f"in {duration(step.seconds)}")
    where = f" {clean(step.repository)}" if step.repository else ""
    return f"{clean(step.kind)}{where}: {', '.join(parts)}"


def _step(told: StepStory, style: Style, said: list[str]) -> list[str]:
    step, totals = told.step, told.step.totals
    lines = [step_line(told, style)]
    found = step.outcome is not Outcome.COMPLETE or step.kind in _FOUND
    if step.text and step.text not in said and found:
        lines.append(f"  {clean(step.text)}")
    if totals.total_files:
        lines.append(
            f"  files: {number(totals.files_new)} new, {number(totals.files_changed)} changed,"
            f" {number(totals.files_unmodified)} unchanged; stored: {size(totals.bytes_stored)}"
        )
    if step.engine:
        lines.append(style.dim(f"  engine: {clean(step.engine)}"))
    if step.engine_network:
        who = "the engine itself" if step.engine else "it"
        lines.append(f"  {who} had the network, as the configuration asks")
    for kind, title in _TITLES.items():
        lines += _findings(told, kind, title, style)
    if step.engine_words:
        lines.append("  the engine said:" if step.engine else "  it said:")
        lines += [f"    {line}" for line in clean_lines(step.engine_words.rstrip())]
    return lines


def _findings(told: StepStory, kind: FindingKind, title: str, style: Style) -> list[str]:
    total = dict(told.counts).get(kind, 0)
    if not total:
        return []
    shown = [finding for finding in told.findings if finding.kind is kind]
    lines = [style.bold(f"  {title}: {number(total)}")]
    for finding in shown:
        why = ": ".join(clean(part) for part in (finding.cause, finding.detail) if part)
        lines.append("    " + "  ".join(part for part in (clean(finding.path), why) if part))
    if total > len(shown):
        lines.append(f"    … and {number(total - len(shown))} more (capkeep log {told.step.run})")
    return lines
