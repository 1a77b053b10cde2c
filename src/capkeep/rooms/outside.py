"""How each kind of channel is told.

Sources: healthchecks.io/docs/http_api, docs.ntfy.sh/publish. What these take long to import
(email, http, ssl) is imported only where it is used.
"""

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from capkeep.errors import CapkeepError
from capkeep.plan.model import Notify, NotifyKind
from capkeep.rooms.protocol import Message

PING_BODY: Final = 100_000  # bytes that Healthchecks keeps (PING_BODY_LIMIT)
NTFY_BODY: Final = 3_800  # bytes; from 4096 on ntfy makes an attachment of a message


class What(StrEnum):
    """What there is to tell."""

    START = "start"
    END = "end"
    TEST = "test"


class RefusedOutside(CapkeepError):
    """The other side, or what is configured, refuses: trying again soon changes nothing."""


class Delivery(NamedTuple):
    """What is told, to all channels alike."""

    what: What
    report: Message
    log: bytes  # as people read it
    hostname: str
    secrets: Mapping[str, str]  # by CHANNEL.KEY

    def text(self, key: str) -> str:
        """A text of the report; empty if there is none."""
        value = self.report.get(key)
        return value if isinstance(value, str) else ""

    @property
    def run(self) -> dict[str, object]:
        """The run as data."""
        run = self.report.get("run")
        return run if isinstance(run, dict) else {}

    @property
    def complete(self) -> bool:
        """Whether nothing was missed."""
        return self.run.get("outcome") == "complete"

    def secret(self, channel: Notify, key: str) -> str:
        """A secret of a channel, "" if it has none of that kind."""
        return self.secrets.get(f"{channel.name}.{key}", "")


class Sender:
    """Tells one channel after the other. `send` raises OSError where trying again may help."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._ways: Mapping[NotifyKind, Callable[[Notify], str]] = {
            NotifyKind.MAIL: self._mail,
            NotifyKind.HEALTHCHECKS: self._healthchecks,
            NotifyKind.WEBHOOK: self._webhook,
            NotifyKind.NTFY: self._ntfy,
            NotifyKind.APPRISE: self._apprise,
        }

    def send(self, channel: Notify) -> str:
        """What the other side said. Raises RefusedOutside, OSError."""
        return self._ways[channel.kind](channel)

    def _mail(self, channel: Notify) -> str:
        from capkeep.rooms.mail import compose, hand_over

        message = compose(channel, self._delivery)
        return hand_over(channel, self._delivery, message)

    def _url(self, channel: Notify) -> str:
        return channel.url or self._delivery.secret(channel, "url")

    def _headers(self, channel: Notify) -> dict[str, str]:
        own = f"{channel.name}.header."
        found = self._delivery.secrets.items()
        secret = {k.removeprefix(own): v for k, v in found if k.startswith(own)}
        return dict(channel.headers) | secret

    def _post(self, channel: Notify, url: str, body: bytes, headers: dict[str, str]) -> str:
        from capkeep.rooms.post import post

        return post(url, body, headers, channel.ca_file)

    def _healthchecks(self, channel: Notify) -> str:
        """A signal with the exit status, the summary and the end of the log."""
        told = self._delivery
        code = told.run.get("exit_code")
        if told.what is What.START:
            suffix = "/start"
        elif told.what is What.TEST:
            suffix = "/log"  # is shown, and changes nothing
        else:
            suffix = f"/{code}" if isinstance(code, int) and 0 <= code < 256 else "/fail"
        base, _, query = self._url(channel).partition("?")
        run_id = str(told.run.get("id") or "")
        queries = [q for q in (query, f"rid={run_uuid(run_id)}" if run_id else "") if q]
        url = base.rstrip("/") + suffix + ("?" + "&".join(queries) if queries else "")
        return self._post(channel, url, self._ping_body(channel), {"Content-Type": "text/plain"})

    def _ping_body(self, channel: Notify) -> bytes:
        body = self._delivery.text("text").encode(errors="backslashreplace")[:PING_BODY]
        log = self._delivery.log if channel.log else b""
        room = PING_BODY - len(body) - 2
        return body + b"\n\n" + log[-room:] if log and room > 0 else body

    def _webhook(self, channel: Notify) -> str:
        told = self._delivery
        message = {
            "event": told.what, "host": told.hostname, "title": told.text("title"),
            "text": told.text("text"), "run": told.run, "steps": told.report.get("steps", []),
            "capkeep": told.text("capkeep"),
        }  # fmt: skip
        headers = {"Content-Type": "application/json"} | self._headers(channel)
        return self._post(channel, self._url(channel), json.dumps(message).encode(), headers)

    def _ntfy(self, channel: Notify) -> str:
        from email.header import Header

        told = self._delivery
        title = told.text("title")
        good = told.complete or told.what is What.TEST
        headers = {
            "Title": title if title.isascii() else Header(title, "utf-8", 10_000).encode(),
            "Priority": "default" if good else "high",
            "Tags": "white_check_mark" if good else "warning",
        } | self._headers(channel)
        if token := told.secret(channel, "token"):
            headers["Authorization"] = f"Bearer {token}"
        body = told.text("short").encode(errors="backslashreplace")[:NTFY_BODY]
        return self._post(channel, self._url(channel), body, headers)

    def _apprise(self, channel: Notify) -> str:
        try:
            import apprise
        except ImportError as error:
            raise RefusedOutside(
                f"Apprise is not installed beside capkeep ({error}): capkeep[apprise]"
            ) from error
        own = f"{channel.name}.url"
        urls = [v for k, v in self._delivery.secrets.items() if k.startswith(own)]
        missed = []
        for number, url in enumerate(urls, 1):
            service = apprise.Apprise()
            if not service.add(url):
                raise RefusedOutside(f"Apprise does not know how to use address {number}")
            kind = "success" if self._delivery.complete else "failure"
            kind = "info" if self._delivery.what is What.TEST else kind
            if not service.notify(
                title=self._delivery.text("title"), body=self._delivery.text("short"),
                notify_type=kind,
            ):  # fmt: skip
                missed.append(str(number))
        if missed:
            raise OSError(f"Apprise could not tell address {', '.join(missed)} of {len(urls)}")
        return f"Apprise told {len(urls)}"


def run_uuid(run_id: str) -> str:
    """The same for all that is told of a run (a UUID of version 4 in its form, RFC 9562)."""
    import hashlib
    import uuid

    return str(uuid.UUID(bytes=hashlib.sha256(run_id.encode()).digest()[:16], version=4))
