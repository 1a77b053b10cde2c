"""Who is told, for real: mail servers and web servers on loopback, with an authority of their own."""

import asyncio
import contextlib
import http.server
import json
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import NamedTuple

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

USER, PASSWORD = "postman", "the password of the postman"


class Authority(NamedTuple):
    """A certificate authority, and a server's certificate for localhost that it signed."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def authority(folder: Path) -> Authority:
    """Made by openssl(1)."""
    made = Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")

    def openssl(*words: object) -> None:
        subprocess.run(
            ["openssl", *map(str, words)], cwd=folder, check=True, capture_output=True, timeout=60
        )

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
           "-days", "2")  # fmt: skip
    openssl(*new, "-keyout", "ca.key", "-out", made.ca, "-subj", "/CN=an authority")
    openssl(*new, "-keyout", made.key, "-out", made.certificate, "-subj", "/CN=localhost",
            "-CA", made.ca, "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")  # fmt: skip
    made.ca.chmod(0o644)
    return made


class Mailbox:
    """What arrives, and how the server behaves: answers to DATA, the first ones first."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.answers: list[str] = []
        self.silent = 0.0  # seconds before an answer
        self.attempts = 0
        self.encrypted: list[bool] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        del server
        self.attempts += 1
        if self.silent:
            await asyncio.sleep(self.silent)
        answer = self.answers.pop(0) if self.answers else "250 taken"
        if answer.startswith("2"):
            assert isinstance(envelope.content, bytes)
            self.raw.append(envelope.content)
            self.encrypted.append(session.ssl is not None)
        return answer

    @property
    def mails(self) -> list[EmailMessage]:
        found = [message_from_bytes(raw, policy=default) for raw in self.raw]
        return [m for m in found if isinstance(m, EmailMessage)]


def _login(
    _server: SMTP, _session: Session, _envelope: Envelope, _how: str, data: object
) -> AuthResult:
    good = isinstance(data, LoginPassword)
    assert isinstance(data, LoginPassword)
    good = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=good, handled=True)


class _Server(Controller):
    """Bound before it says that it is ready."""

    @property
    def number(self) -> int:
        assert self.server is not None
        return int(self.server.sockets[0].getsockname()[1])


@contextlib.contextmanager
def mail_server(how: str, made: Authority | None = None) -> Iterator[tuple[Mailbox, int]]:
    """A real SMTP server: "none", "starttls" or "tls"; with encryption it wants a login."""
    box = Mailbox()
    more: dict[str, object] = {}
    if made:
        more = {"auth_required": True, "authenticator": _login}
    if made and how == "starttls":
        more |= {"tls_context": made.context(), "require_starttls": True}
    if made and how == "tls":
        more |= {"auth_require_tls": False}  # it sees no STARTTLS in a connection that is TLS
    context = made.context() if made and how == "tls" else None
    port = _free_port()
    server = Controller(box, hostname="127.0.0.1", port=port, ssl_context=context, **more)
    server.start()
    try:
        yield box, port
    finally:
        server.stop()


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Asked(NamedTuple):
    """One request that came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


class WebServer:
    """Keeps what it is sent; answers with the statuses that are waiting, then 200."""

    def __init__(self, made: Authority | None) -> None:
        self.asked: list[Asked] = []
        self.statuses: list[int] = []
        self.slow = 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append(Asked(self.path, dict(self.headers), body, time.time()))
                time.sleep(outer.slow)
                status = outer.statuses.pop(0) if outer.statuses else 200
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"OK")

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http{'s' if made else ''}://localhost:{self.port}"
        if made:
            self._server.socket = made.context().wrap_socket(self._server.socket, server_side=True)

    @contextlib.contextmanager
    def serving(self) -> Iterator["WebServer"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join(10)


def web_server(made: Authority | None = None) -> "contextlib.AbstractContextManager[WebServer]":
    return WebServer(made).serving()


def secret(base: str, name: str, text: str) -> str:
    """A secret's file, and how the configuration names it."""
    path = Path(base, "etc/secrets", name)
    path.write_text(text + "\n")
    path.chmod(0o600)
    return f'{{ file = "{path}" }}'


def until(condition: "object", seconds: float = 20) -> None:
    """Wait for what happens after the caller has had its answer."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def owner(path: Path) -> int:
    return os.stat(path).st_uid
