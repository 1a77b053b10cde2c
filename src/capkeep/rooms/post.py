"""One HTTP POST, and what its answer means."""

import http.client
import ssl
from typing import Final
from urllib.parse import urlsplit

from capkeep import __version__
from capkeep.rooms.outside import RefusedOutside

SECONDS: Final = 20  # of silence
ANSWER_LIMIT: Final = 64 << 10  # bytes that are read of an answer
LATER: Final = frozenset((408, 425, 429))  # the other side asks to try again


def post(url: str, body: bytes, headers: dict[str, str], ca_file: str) -> str:
    """The status. Raises RefusedOutside, and OSError where trying again may help.

    Addresses are secrets, and so may be what servers say of them: neither is in any error.
    """
    connection = _connection(url, ca_file)
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(
            "POST", target, body, {"User-Agent": f"capkeep/{__version__}", **headers}
        )
        response = connection.getresponse()
        response.read(ANSWER_LIMIT)
    except ssl.SSLCertVerificationError as error:
        raise RefusedOutside(f"its certificate is not trusted: {error.verify_message}") from error
    except http.client.HTTPException as error:
        raise OSError(f"it does not answer as HTTP says ({type(error).__name__})") from error
    except ValueError as error:
        raise RefusedOutside("the address or a header field cannot be sent") from error
    finally:
        connection.close()
    return _meaning(response.status)


def _connection(url: str, ca_file: str) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if not host or parts.scheme not in ("http", "https"):
        raise RefusedOutside("the secret is not an address that begins with https://")
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=SECONDS)
    return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=trusting(ca_file))


def trusting(ca_file: str) -> ssl.SSLContext:
    """TLS that trusts the authorities in a file, or the host's. Raises RefusedOutside."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise RefusedOutside(f"{ca_file} holds no certificate authority: {error}") from error


def _meaning(status: int) -> str:
    said = f"HTTP {status} {http.client.responses.get(status, '')}".rstrip()
    if 200 <= status < 300:
        return said
    if status >= 500 or status in LATER:
        raise OSError(said)
    if 300 <= status < 400:
        raise RefusedOutside(f"{said}: it points to another address; write that one")
    raise RefusedOutside(said)
