"""Encrypt a text for somebody with the tools that he has: gpg(1) or age(1).

What goes in and comes out is held in memory: it is never on a disk in the clear.
"""

import contextlib
import os
import shutil
import tempfile
from typing import BinaryIO, Final, NamedTuple

from capkeep.errors import RefusedError
from capkeep.kernel.process import spawn

SECONDS: Final = 60
PATH: Final = "/usr/local/bin:/usr/bin:/bin"
GPG: Final = ("--batch", "--no-tty", "--quiet", "--armor", "--output", "-")


class Sealing(NamedTuple):
    """For whom: a passphrase, or recipients of age or of gpg; nothing of it is no encryption."""

    passphrase: str = ""
    age: tuple[str, ...] = ()  # age1…, or a public key of ssh
    gpg: tuple[str, ...] = ()  # fingerprints of keys in the caller's keyring


def seal(content: bytes, sealing: Sealing) -> bytes:
    """The text as only they can read it, armoured: it can be printed. Raises RefusedError."""
    if sealing.passphrase:
        return _symmetric(content, sealing.passphrase)
    if sealing.age:
        words = [word for recipient in sealing.age for word in ("--recipient", recipient)]
        return _run("age", ["--encrypt", "--armor", *words], content)
    if sealing.gpg:
        # Whoever names a fingerprint has said which key he means.
        words = [word for key in sealing.gpg for word in ("--recipient", key)]
        words = ["--encrypt", "--no-auto-key-locate", "--trust-model", "always", *words]
        return _run("gpg", [*GPG, *words], content)
    return content


def _symmetric(content: bytes, passphrase: str) -> bytes:
    """With a home of its own, so that nobody's agent or settings have a part in it."""
    with tempfile.TemporaryDirectory(prefix="capkeep-") as home:
        words = [*GPG, "--homedir", home, "--symmetric", "--cipher-algo", "AES256",
                 "--pinentry-mode", "loopback", "--passphrase-fd", "3"]  # fmt: skip
        try:
            return _run("gpg", words, content, passphrase)
        finally:
            # gpg has started an agent there, which would stay.
            _run("gpgconf", ["--homedir", home, "--kill", "all"], b"")


def _run(program: str, words: list[str], content: bytes, passphrase: str = "") -> bytes:
    """What a program makes of the content. The passphrase is its descriptor 3."""
    found = shutil.which(program, path=PATH)
    if not found:
        package = "age" if program == "age" else "gnupg"
        raise RefusedError(f"{program} is not installed", hint=f"apt-get install {package}")
    environment = {"PATH": PATH, "HOME": os.path.expanduser("~"), "LANG": "C.UTF-8"}
    if keyring := os.environ.get("GNUPGHOME"):
        environment["GNUPGHOME"] = keyring
    with contextlib.ExitStack() as stack:
        line = passphrase.encode(errors="surrogateescape") + b"\n"
        stdin, secret, stdout, stderr = (
            stack.enter_context(_in_memory(text)) for text in (content, line, b"", b"")
        )
        child = spawn(
            [found, *words], env=environment, stdin=stdin.fileno(), stdout=stdout.fileno(),
            stderr=stderr.fileno(), keep={3: secret.fileno()} if passphrase else {},
        )  # fmt: skip
        try:
            code = child.wait(SECONDS)
        except TimeoutError as error:
            raise RefusedError(f"{program} did not end within {SECONDS} s") from error
        finally:
            child.kill()
        if code:
            said = _all_of(stderr).decode(errors="replace").strip().splitlines()
            raise RefusedError(f"{program} did not do it: {said[0] if said else 'no word why'}")
        return _all_of(stdout)


def _in_memory(content: bytes) -> BinaryIO:
    """A file that is on no disk (memfd_create(2)), at its beginning."""
    file = open(os.memfd_create("capkeep"), "w+b", buffering=0)  # noqa: SIM115 - the caller closes it
    file.write(content)
    file.seek(0)
    return file


def _all_of(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()
