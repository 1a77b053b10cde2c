"""What people are told of a run, and what of it might deceive or harm them."""

import base64

from capkeep.errors import Failure
from capkeep.plan.model import Notify, NotifyKind, When
from capkeep.records.model import Finding, FindingKind, Outcome, Proof, Run, Step, Totals
from capkeep.report.notice import TITLE_LIMIT, plain_report, words
from capkeep.report.story import StepStory, Story
from capkeep.rooms.mail import compose
from capkeep.rooms.notifier import masked
from capkeep.rooms.outside import Delivery, What, run_uuid
from capkeep.rooms.protocol import MAX_LINE, encode

HOSTILE = "a\r\nBcc: x@y\x1b[2J<script>alert(1)</script>\u202e\udcff"


def story(outcome: Outcome, **changes: object) -> Story:
    run = Run("20261121T040506Z-ab12", "system", 1.7e9, seconds=4.0, outcome=outcome, exit_code=3)
    step = Step(
        run.id, 1, "backup", "offsite", 1.7e9, seconds=3.0, outcome=outcome, snapshot="0123456789",
        totals=Totals(total_files=12, bytes_processed=3 << 20, bytes_added=1 << 20),
    )  # fmt: skip
    found = Finding(FindingKind.UNREADABLE, HOSTILE, "denied", "")
    proofs = (Proof("reader", "room", "{}"), Proof("reader", "engine", "{}"))
    told = StepStory(step, proofs, (found,), ((FindingKind.UNREADABLE, 7),))
    return Story(run._replace(**changes), (told,))  # type: ignore[arg-type]


def delivery(told: Story) -> Delivery:
    return Delivery(What.END, plain_report(told, "host"), b"a log\n", "host", {})


MAIL = Notify("mail", NotifyKind.MAIL, When.ALWAYS, (), (), log=True, retry_seconds=1, to=("a@b",))


def test_the_outcome_comes_first_and_what_to_do_last() -> None:
    told = words(story(Outcome.FAILED, failure=Failure.DAMAGED, text="3 errors"), "host")
    assert told.title == "[capkeep] FAILED: backup of system on host: 3 errors"
    assert told.text.startswith("FAILED: backup of system on host: 3 errors")
    assert "not read: 7" in told.text
    assert "2 processes in 1 room have" in told.text
    assert told.text.rstrip().endswith("capkeep log 20261121T040506Z-ab12")
    assert "Change nothing in the repository" in told.text
    assert "12 files, 3.0 MiB" in told.short


def test_a_complete_run_asks_for_nothing() -> None:
    told = words(story(Outcome.COMPLETE), "host")
    assert told.title == "[capkeep] complete: backup of system on host"
    assert "Next" not in told.text + told.html


def test_what_is_weaker_than_granted_is_said() -> None:
    weak = story(Outcome.FAILED)
    step = weak.steps[0]._replace(proofs=(Proof("reader", "room", "{}", ("has too much",)),))
    assert "WEAKER THAN GRANTED: has too much" in words(weak._replace(steps=(step,)), "host").text


def test_names_of_files_steer_neither_header_nor_page_nor_terminal() -> None:
    told = delivery(story(Outcome.PARTIAL, text=HOSTILE, reasons=(HOSTILE,)))
    mail = compose(MAIL, told)
    assert mail["Bcc"] is None
    assert "\n" not in str(mail["Subject"])
    page = told.text("html")
    assert "<script>" not in page
    for text in (page, told.text("text"), told.text("short"), told.text("title")):
        assert not set("\x1b\u202e\udcff\r") & set(text)
    assert mail.as_bytes()


def test_however_much_a_room_says_a_report_stays_small() -> None:
    much = "\u00e9\u4e2d" * 1_000_000
    told = story(Outcome.FAILED, text=much, reasons=(much,) * 1000)
    step = told.steps[0].step._replace(text=much, engine_words=much)
    found = tuple(Finding(kind, much, much, much) for kind in FindingKind for _ in range(20))
    steps = (told.steps[0]._replace(step=step, findings=found),) * 50
    report = plain_report(told._replace(steps=steps), "host")
    assert len(encode(report)) < MAX_LINE
    assert len(str(report["title"])) <= TITLE_LIMIT


def test_secrets_and_their_parts_are_not_repeated() -> None:
    secrets = {"a.url": "https://h/services/T00000000/B11111111?key=verysecret", "a.p": "pw"}
    said = masked("404 /services/T00000000/B11111111: pw? no", secrets)
    assert said == "404 /…/…/…: …? no"


def test_passwords_are_not_repeated_as_they_were_sent() -> None:
    word = "a pässword/of?mine"
    sent = f"\0ann\0{word}".encode()
    encoded = base64.b64encode(word.encode()).decode()
    plain = base64.b64encode(sent).decode()
    said = masked(f"535 {plain} {encoded} {encoded.rstrip('=')}", {"m.password": word}, ["", "ann"])
    assert said.replace("=", "") == "535 … … …"


def test_a_run_has_one_id_everywhere() -> None:
    assert run_uuid("a") == run_uuid("a") != run_uuid("b")
