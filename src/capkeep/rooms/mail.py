"""A mail about a run, and its way to a server.

Sources: RFC 5322, RFC 3834 (Auto-Submitted), RFC 2919 (List-Id), RFC 8314 (TLS for submission).
"""

# mypy: disable-error-code="explicit-any"
# EmailMessage has Any in what it lets a message's header fields be.

import gzip
import os
import smtplib
import ssl
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from typing import BinaryIO, Final

from capkeep import __version__
from capkeep.kernel.process import spawn
from capkeep.plan.model import Notify
from capkeep.rooms.outside import Delivery, RefusedOutside
from capkeep.rooms.post import trusting

SECONDS: Final = 30  # of silence
PROGRAM_SECONDS: Final = 50
WORDS_LIMIT: Final = 4096  # bytes of what such a program says
REPLY_LIMIT: Final = 64 << 10  # bytes
COMPRESSED_FROM: Final = 128 << 10  # bytes of a log
LINE: Final = 200  # characters; 998 are allowed (RFC 5322, 2.1.1)
LARGEST: Final = 10 << 20  # bytes of an attachment: many servers refuse more than 20 MB as text


def compose(channel: Notify, told: Delivery) -> EmailMessage:
    """The whole message: text, HTML, and the log."""
    host = _label(told.hostname)
    run = _label(str(told.run.get("id") or "test"))
    title = told.text("title") or "capkeep"
    # Python 3.11 begins a subject that is folded with an empty line, which readers show as a space.
    policy = SMTP.clone(max_line_length=LINE) if title.isascii() else SMTP
    message = EmailMessage(policy=policy)
    message["From"] = channel.sender or f"capkeep@{host}"
    message["To"] = ", ".join(channel.to)
    message["Subject"] = title
    message["Date"] = formatdate(localtime=True)
    # The same at every attempt, so that what arrives twice is seen to be one message.
    message["Message-ID"] = f"<{run}.{told.what}.{channel.name}@{host}>"
    message["Auto-Submitted"] = "auto-generated"
    message["List-Id"] = f"capkeep on {host} <capkeep.{host}>"
    message["X-Mailer"] = f"capkeep {__version__}"
    message["X-Capkeep-Outcome"] = _label(str(told.run.get("outcome") or told.what))
    if told.run.get("job"):
        message["X-Capkeep-Job"] = _label(str(told.run["job"]))
    log, note = _log(channel, told, run)
    text = told.text("text") + note
    message.set_content(text.encode(errors="backslashreplace").decode())
    if html := told.text("html"):
        message.add_alternative(html.encode(errors="backslashreplace").decode(), subtype="html")
    if log:
        name, content = log
        kind = ("application", "gzip") if name.endswith(".gz") else ("text", "plain")
        message.add_attachment(content, maintype=kind[0], subtype=kind[1], filename=name)
    return message


def _log(channel: Notify, told: Delivery, run: str) -> tuple[tuple[str, bytes] | None, str]:
    """The attachment, and what the text says of it."""
    if not channel.log or not told.log:
        return None, ""
    name, content = f"capkeep-{run}.log", told.log
    if len(content) >= COMPRESSED_FROM:
        name, content = name + ".gz", gzip.compress(content, 6)
    if len(content) > LARGEST:
        size = len(content) >> 20
        return None, f"\nThe log is too large for a mail ({size} MiB): capkeep log {run}\n"
    return (name, content), f"\nThe full log is attached ({name}).\n"


def _label(text: str) -> str:
    """What may stand in an identifier."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "-" for c in text) or "-"


def hand_over(channel: Notify, told: Delivery, message: EmailMessage) -> str:
    """What the server said. Raises RefusedOutside, and OSError where trying again may help."""
    if channel.program:
        return _through_program(channel, message)
    try:
        return _through_server(channel, told, message)
    except smtplib.SMTPRecipientsRefused as error:
        answers = sorted(error.recipients.items())
        said = "; ".join(f"{who}: {_answer(*answer)}" for who, answer in answers)
        raise _error(min(answer[0] for _, answer in answers), said) from error
    except smtplib.SMTPResponseException as error:
        raise _error(error.smtp_code, _answer(error.smtp_code, error.smtp_error)) from error
    except smtplib.SMTPNotSupportedError as error:
        raise RefusedOutside(str(error)) from error
    except smtplib.SMTPServerDisconnected as error:
        raise OSError(f"the mail server hung up: {error}") from error
    except smtplib.SMTPException as error:
        raise RefusedOutside(str(error)) from error
    except ssl.SSLCertVerificationError as error:
        raise RefusedOutside(f"its certificate is not trusted: {error.verify_message}") from error


class _Reply:
    """What a server says, each reply up to a limit: smtplib keeps all lines of one, without end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.left = REPLY_LIMIT

    def readline(self, most: int) -> bytes:
        """Raises OSError when the reply is too long."""
        line = self._file.readline(most)
        self.left -= len(line)
        if self.left < 0:
            raise OSError(f"its reply is longer than {REPLY_LIMIT} bytes")
        return line

    def close(self) -> None:
        self._file.close()


class _Server(smtplib.SMTP):
    def getreply(self) -> tuple[int, bytes]:  # type: ignore[explicit-override]  # from 3.12 on
        if self.file is None and self.sock is not None:
            self.file = _Reply(self.sock.makefile("rb"))
        if self.file is not None:
            self.file.left = REPLY_LIMIT
        return super().getreply()


class _EncryptedServer(_Server, smtplib.SMTP_SSL):
    pass


def _through_server(channel: Notify, told: Delivery, message: EmailMessage) -> str:
    own_name = _label(told.hostname)
    server: smtplib.SMTP
    if channel.tls == "tls":
        server = _EncryptedServer(
            channel.host, channel.port, own_name, timeout=SECONDS,
            context=trusting(channel.ca_file),
        )  # fmt: skip
    else:
        server = _Server(channel.host, channel.port, own_name, timeout=SECONDS)
    with server:
        if channel.tls == "starttls":
            server.starttls(context=trusting(channel.ca_file))
        if channel.user:
            server.login(channel.user, told.secret(channel, "password"))
        refused = server.send_message(message)
    missing = "; ".join(f"{who}: {_answer(*answer)}" for who, answer in sorted(refused.items()))
    where = f"{channel.host}:{channel.port} took it"
    return f"{where}, but not for {missing}" if missing else where


def _error(code: int, said: str) -> Exception:
    """4xx asks to come again (RFC 5321, 4.2.1); anything else is final."""
    return OSError(said) if 400 <= code < 500 else RefusedOutside(said)


def _answer(code: int, words: bytes | str) -> str:
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    return f"{code} {' '.join(text.split())}"


def _through_program(channel: Notify, message: EmailMessage) -> str:
    """A program that takes mail as sendmail does, in this room."""
    mail = os.memfd_create("mail", os.MFD_CLOEXEC)
    # No pipe, which is full after 64 KiB and then nobody would read.
    said = os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        with open(mail, "wb", closefd=False) as file:
            file.write(message.as_bytes(policy=message.policy.clone(linesep="\n")))
        os.lseek(mail, 0, os.SEEK_SET)
        argv = [channel.program, "-i", "-f", str(message["From"]), "--", *channel.to]
        child = spawn(
            argv, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}, stdin=mail, stdout=said,
            stderr=said,
        )  # fmt: skip
        try:
            code = child.wait(PROGRAM_SECONDS)
        finally:
            child.kill()
        words = os.pread(said, WORDS_LIMIT, 0).decode(errors="replace")
    finally:
        os.close(mail)
        os.close(said)
    if code:
        # EX_TEMPFAIL and what a network does, else final (sysexits.h).
        text = f"{channel.program} ended with {code}: {' '.join(words.split())}"
        raise OSError(text) if code in (68, 69, 75) else RefusedOutside(text)
    return f"{channel.program} took it"
