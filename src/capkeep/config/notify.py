"""A channel's table, checked: who is told of runs, how, and with which secrets."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from capkeep.config import syntax
from capkeep.config.mistakes import Collector, Place, nearest
from capkeep.config.model import JobConfig, NotifyConfig, Setting
from capkeep.config.secrets import check_secret, not_a_program
from capkeep.config.sources import Owner
from capkeep.config.syntax import SOURCE_HINT, kebab
from capkeep.config.validate import Checked
from capkeep.values import SecretSource

KINDS: Final = ("mail", "healthchecks", "webhook", "ntfy", "apprise")
# Which settings are for which kinds; all others are for every kind.
FOR: Final[Mapping[str, tuple[str, ...]]] = {
    "log": ("mail", "healthchecks"),
    "ca_file": ("mail", "healthchecks", "webhook", "ntfy"),
    "to": ("mail",),
    "from_": ("mail",),
    "smtp": ("mail",),
    "tls": ("mail",),
    "user": ("mail",),
    "password": ("mail",),
    "sendmail": ("mail",),
    "sendmail_files": ("mail",),
    "url": ("healthchecks", "webhook", "ntfy"),
    "headers": ("webhook", "ntfy"),
    "token": ("ntfy",),
    "urls": ("apprise",),
}
HERE: Final = ("localhost", "127.0.0.1", "::1")
DEFAULT_SMTP: Final = "localhost:25"
IMPLICIT_TLS: Final = 465  # RFC 8314
_ADDRESS: Final = re.compile(r"[^\s<>@,;:\"()\[\]\\]+@[^\s<>@,;:\"()\[\]\\]+")
_HEADER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")

Table = Checked[syntax.Notify]


class NotifyChecker:
    """Turns one table after another into values."""

    def __init__(self, jobs: Iterable[str], owner: Owner, collector: Collector) -> None:
        self._jobs = tuple(jobs)
        self._owner = owner
        self._collector = collector

    def check(
        self, name: str, table: Table, wrong: frozenset[str], *, all_read: bool
    ) -> NotifyConfig:
        """The channel as a value. After mistakes it is not fit for use, only for further checks."""
        model = table.model
        kind = self._kind(name, table, wrong)
        self._belonging(table, kind)
        if all_read:
            self._job_names(table)
        if model.ca_file:
            self._readable(model.ca_file, table.at("ca-file"))
        host, port, tls = self._mail(table, wrong) if kind == "mail" else ("", 0, "")
        if kind == "apprise" and not model.urls and "urls" not in wrong:
            hint = 'write urls = [{ file = "/etc/capkeep/secrets/apprise" }]'
            self._collector.mistake(table.at("urls"), "nobody is named to be told", hint)
        if "url" in _of(kind) and "url" not in wrong:
            self._url(table)
        return NotifyConfig(
            name=name,
            kind=kind or "webhook",
            when=model.when or ("always" if kind == "healthchecks" else "failure"),
            jobs=tuple(dict.fromkeys(model.jobs)),
            log=model.log and kind in FOR["log"],
            retry_seconds=model.retry_for,
            ca_file=model.ca_file,
            url=model.url if isinstance(model.url, str) else "",
            headers=tuple((k, v) for k, v in model.headers.items() if isinstance(v, str)),
            to=tuple(model.to),
            sender=model.from_,
            host=host,
            port=port,
            tls=tls,
            user=model.user,
            program=model.sendmail,
            files=tuple(model.sendmail_files),
            secrets=tuple(self._secrets(table)),
        )

    def check_jobs(
        self, jobs: Iterable[JobConfig], settings: Mapping[str, Setting], channels: list[str]
    ) -> None:
        """Whether the channels that jobs name are there, and whether each channel has a job."""
        for job in jobs:
            setting = settings.get(f"jobs.{job.name}.notify")
            place = setting.place if setting else None
            for name in job.notify if place else ():
                if name not in channels:
                    guess = nearest(name, channels)
                    hint = f'did you mean "{guess}"?' if guess else f"define [notify.{name}]"
                    self._collector.mistake(
                        place or Place("", 0, ""), f"there is no channel {name!r}", hint
                    )

    def _kind(self, name: str, table: Table, wrong: frozenset[str]) -> str:
        written = table.model.kind
        if written or "kind" in wrong:
            return written
        if name in KINDS:
            return name
        guess = "mail" if table.model.to else "webhook"
        self._collector.mistake(
            table.at(),
            "does not say how to tell, and its name is no kind of channel",
            f'write kind = "{guess}", or one of {", ".join(KINDS)}',
        )
        return ""

    def _belonging(self, table: Table, kind: str) -> None:
        """A setting of another kind would silently have no meaning."""
        for field, kinds in FOR.items():
            if kind and table.gives(field) and kind not in kinds:
                fit = ", ".join(kebab(f) for f in _of(kind))
                said = f"has no meaning for {kind}, only for {', '.join(kinds)}"
                self._collector.mistake(
                    table.at(kebab(field)), said, f"take it away; {kind} knows {fit}"
                )

    def _job_names(self, table: Table) -> None:
        for i, job in enumerate(table.model.jobs):
            if job not in self._jobs:
                guess = nearest(job, self._jobs)
                hint = f'did you mean "{guess}"?' if guess else f"define [jobs.{job}]"
                self._collector.mistake(table.at("jobs", i), f"there is no job {job!r}", hint)

    # -- mail

    def _mail(self, table: Table, wrong: frozenset[str]) -> tuple[str, int, str]:
        """Host, port and way of encryption; checks all that is about mail."""
        model = table.model
        if not model.to and "to" not in wrong:
            self._collector.mistake(
                table.at("to"), "nobody is named to be written to", 'write to = "admin@example.org"'
            )
        for field, addresses in (("to", model.to), ("from", [model.from_] if model.from_ else [])):
            for address in addresses:
                if not _ADDRESS.fullmatch(address) or not address.isprintable():
                    self._collector.mistake(
                        table.at(field),
                        f"{address!r} is not a mail address",
                        "write user@host alone",
                    )
        if model.sendmail:
            self._sendmail(table)
            return "", 0, ""
        if model.sendmail_files:
            said = "has no meaning without sendmail"
            self._collector.mistake(table.at("sendmail-files"), said, "take it away")
        host, port = self._server(model.smtp or DEFAULT_SMTP, table.at("smtp"))
        tls = model.tls or (
            "tls" if port == IMPLICIT_TLS else "none" if host in HERE else "starttls"
        )
        if not wrong & {"user", "password"}:
            self._login(table, host, tls)
        return host, port, tls

    def _server(self, written: str, place: Place) -> tuple[str, int]:
        host, colon, number = written.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        fits = colon and number.isdecimal() and 0 < int(number) < 65536
        if not fits or not host or not host.isprintable() or set(host) & set(" /@"):
            self._collector.mistake(
                place, f"{written!r} is not a server and its port", 'write "mail.example.org:587"'
            )
            return "localhost", 25
        return host, int(number)

    def _login(self, table: Table, host: str, tls: str) -> None:
        model = table.model
        if bool(model.user) != table.gives("password"):
            missing, example = (
                ("password", 'password = { file = "/etc/capkeep/secrets/mail" }')
                if model.user
                else ("user", 'user = "name"')
            )
            self._collector.mistake(
                table.at(missing), f"to log in, {missing} is needed too", f"write {example}"
            )
        if model.user and tls == "none" and host not in HERE:
            self._collector.mistake(
                table.at("tls"), "the password would travel where others can read it",
                'write tls = "starttls" or tls = "tls"',
            )  # fmt: skip

    def _sendmail(self, table: Table) -> None:
        model = table.model
        place = table.at("sendmail")
        for field in ("smtp", "tls", "user", "password"):
            if table.gives(field):
                self._collector.mistake(
                    table.at(field), "has no meaning beside sendmail", "choose one of the two"
                )
        problem = not_a_program(model.sendmail)
        if not model.sendmail.startswith("/") or problem:
            said = problem or f"{model.sendmail!r} is not an absolute path"
            self._collector.mistake(place, said, "name a program by its absolute path")
            return
        if os.stat(model.sendmail).st_mode & (stat.S_ISUID | stat.S_ISGID):
            self._collector.mistake(
                place,
                f"{model.sendmail} needs its owner's rights, which no room can give",
                f'such a mail server listens itself: write smtp = "{DEFAULT_SMTP}"',
            )
        for i, path in enumerate(model.sendmail_files):
            self._readable(path, table.at("sendmail-files", i))

    # -- places and secrets

    def _url(self, table: Table) -> None:
        url = table.model.url
        if isinstance(url, SecretSource):
            return
        place = table.at("url")
        if not url:
            self._collector.mistake(
                place,
                "it is not said where to",
                'write url = { file = "/etc/capkeep/secrets/NAME" }, or a text if it is no secret',
            )
            return
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not host or not url.isascii() or " " in url:
            self._collector.mistake(place, "is not an address", 'write "https://host/path"')
        elif parts.username or parts.password:
            self._collector.mistake(
                place, "a secret must not be written in the configuration", SOURCE_HINT
            )
        elif parts.scheme == "http" and host not in HERE:
            said = "without https others on the way can read and change what is sent"
            self._collector.remark(place, said)

    def _secrets(self, table: Table) -> Iterator[tuple[str, SecretSource]]:
        """Every secret by what it is for, checked."""
        model = table.model
        found: list[tuple[str, SecretSource, Place]] = []
        for key, source in (
            ("url", model.url),
            ("password", model.password),
            ("token", model.token),
        ):
            if isinstance(source, SecretSource) and table.gives(key):
                found.append((key, source, table.at(key)))
        for header, value in model.headers.items():
            place = table.at("headers", header)
            if not _HEADER.fullmatch(header):
                self._collector.mistake(
                    place, f"{header!r} is no name of a header field", "use letters, digits and -"
                )
            if isinstance(value, SecretSource):
                found.append((f"header.{header}", value, place))
            elif not value.isprintable() or not value.isascii():
                self._collector.mistake(
                    place, "cannot be sent in a header field", "use plain ASCII"
                )
        found += [(f"url{i}", u, table.at("urls", i)) for i, u in enumerate(model.urls)]
        for key, source, place in found:
            check_secret(source, place, self._owner, self._collector)
            yield key, source

    def _readable(self, path: str, place: Place) -> None:
        """A file that the notifier's user must be able to read."""
        if not path.startswith("/"):
            self._collector.mistake(place, f"{path!r} is not an absolute path", "write /path/to/it")
            return
        try:
            state = os.stat(path)
        except OSError as error:
            said = f"{path} cannot be looked at: {error.strerror}"
            self._collector.mistake(place, said, "name a file that is there")
            return
        if not stat.S_ISREG(state.st_mode):
            self._collector.mistake(place, f"{path} is not a regular file", "name a file")
        elif unsafe := self._owner.unsafe_to_read(state):
            self._collector.mistake(place, f"{path} {unsafe}", f"{self._owner.chown} {path}")


def _of(kind: str) -> tuple[str, ...]:
    """The settings that only some kinds have, this one among them."""
    return tuple(field for field, kinds in FOR.items() if kind in kinds)


def check_metrics(table: Checked[syntax.Metrics] | None, collector: Collector) -> str:
    """The directory for metrics, "" for none."""
    if table is None:
        return ""
    path = table.model.directory
    plain = os.path.normpath(path)
    if not path.startswith("/") or path.rstrip("/") != plain or plain == "/":
        collector.mistake(
            table.at("directory"), f"{path!r} is not the plain path of a directory",
            'write directory = "/var/lib/capkeep/metrics"',
        )  # fmt: skip
        return ""
    if os.path.lexists(plain) and not os.path.isdir(plain):
        collector.mistake(table.at("directory"), f"{plain} is not a directory", "name another one")
        return ""
    return os.path.realpath(plain)
