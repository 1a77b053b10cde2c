"""A repository's keys: asked for in the keeper's room, exchanged so that no moment is a bad one.

A rotation is a walk over files of root's own, `NEW` and `OLD` in the state directory, and the
secret's file itself. Whenever it is cut off, the secret's file holds a password that opens the
repository, and the next rotation goes on from what lies there:

    NEW              the new password is chosen; its key is perhaps in the repository
    NEW and OLD      its key is there, and was tried; the secret's file holds the one or the other
    OLD              the secret's file holds the new one; the old key is perhaps still there
"""

import base64
import fcntl
import os
import secrets
from types import TracebackType
from typing import Final

from capkeep.engines import ENGINES
from capkeep.errors import Failure, RefusedError, StepError
from capkeep.host.direct import converse
from capkeep.host.files import Owner, make_directory, remove_file, write_atomic
from capkeep.host.launchers import secret_file
from capkeep.host.secrets import describe, fetch
from capkeep.plan.exported import notes
from capkeep.plan.model import Mode, Plan, RoomKind, Secret, closed
from capkeep.report.key_sheet import Sheet
from capkeep.rooms.protocol import Message
from capkeep.values import secret_text

PASSWORD_BYTES: Final = 32  # of a password that is made here
SAME_PASSWORD: Final = 2  # keys that one password may open: an `init` that is cut off leaves two


class Keys:
    """The keys of one repository; one at a time works on them. A context."""

    def __init__(self, plan: Plan, repository: str) -> None:
        """Raises RefusedError for one that nobody here can open."""
        self.plan = plan
        self.repository = plan.repository(repository)
        if self.repository.target_keeps_password:
            text, _ = closed(repository)
            raise RefusedError(
                text, hint="work on its keys with the engine itself, where the password is known"
            )
        self.room = plan.room(f"{RoomKind.KEEPER}-{repository}")
        root = plan.mode is Mode.SYSTEM
        self._owner = Owner(0, 0) if root else Owner(os.geteuid(), os.getegid())
        self._open_mode = 0o755 if root else 0o700
        self._folder = f"{plan.places.state}/keys"
        self._base = f"{self._folder}/{repository}"
        self._lock = -1

    def __enter__(self) -> "Keys":
        """Raises RefusedError while somebody else is at work on them, OSError."""
        make_directory(self._folder, owner=self._owner, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(f"{self._base}.lock", flags, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise RefusedError(
                f"somebody works on the keys of repository {self.repository.name} already",
                hint="wait until that has ended",
            ) from error
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _where: TracebackType | None
    ) -> None:
        os.close(self._lock)

    # -- asking

    def ask(self, what: str, *, password: str = "", key: str = "") -> Message:
        """What the keeper answers. Raises StepError."""
        options: Message = {"what": what}
        options |= {"password": password} if password else {}
        options |= {"key": key} if key else {}
        request: Message = {"action": "keys", "options": options}
        result = converse(self.plan, self.room, request, lambda _: None)
        if result.get("failure") is not None:
            raise StepError(
                Failure(str(result["failure"])), str(result.get("text")),
                hint=str(result.get("hint") or ""),
                engine_words=str(result.get("engine_words") or ""),
            )  # fmt: skip
        return result

    def secret(self) -> Secret:
        """Where the password comes from."""
        return next(s for s in self.room.secrets if s.name == "password")

    def password(self) -> str:
        """The password, from where the configuration says. Raises SecretError."""
        return fetch(self.secret(), self.room.grant, self.plan.mode)

    def credentials(self) -> list[tuple[str, str]]:
        """What else is needed to reach the place, by name. Raises SecretError."""
        rooms = [r for r in self.plan.rooms if r.repository == self.repository.name]
        holder = next((r for r in rooms if r.kind is RoomKind.VAULT), self.room)
        found = [s for s in holder.secrets if s.name != "password"]
        return [(s.name, fetch(s, holder.grant, self.plan.mode)) for s in found]

    def sheet(self, *, with_credentials: bool) -> Sheet:
        """All that opens it elsewhere, and what is written down does. Raises StepError, SecretError."""
        result = self.ask("export")
        rooms = self.credentials()
        return Sheet(
            repository=self.repository, engine=str(result.get("engine")), key=current(result),
            hostname=os.uname().nodename, password=self.password(),
            credentials=tuple(rooms) if with_credentials else (),
            needed=tuple(name for name, _ in rooms), exported=str(result.get("exported") or ""),
        )  # fmt: skip

    # -- notes of exports

    def note_export(self, key: str) -> None:
        """It was exported: nobody needs to be reminded any more."""
        make_directory(notes(self.plan.places), owner=self._owner, mode=self._open_mode)
        write_atomic(self._note(), f"{key}\n".encode(), owner=self._owner, mode=0o644)

    def _note(self) -> str:
        return f"{notes(self.plan.places)}/{self.repository.name}"

    # -- rotation

    def rotate(self, password: str) -> str:
        """Exchange the password, for one that is made here if none is given; the new key's id.

        Goes on with what a rotation that was cut off has left. Raises RefusedError, StepError.
        """
        file = self._file()
        begun = self._left("new")
        if not ENGINES[self.repository.engine].traits.many_keys:
            raise RefusedError(
                f"a {self.repository.engine} repository has one password, so no new one can be tried"
                " before the old one is gone",
                hint="change it with the engine's own program, and the secret's file with it",
            )
        if password and (begun or self._left("old")):
            raise RefusedError(
                f"a rotation of repository {self.repository.name} was cut off",
                hint=f"finish it first, with its own password: capkeep key rotate"
                f" {self.repository.name}",
            )
        if self._left("old") is None:
            self._begin(begun or password or _made())
        if (begun := self._left("new")) is not None:
            if self.password() not in (begun, self._left("old")):
                raise RefusedError(
                    f"{file} holds neither the old nor the new password of the rotation that was"
                    " cut off",
                    hint=f"if that one opens the repository, remove {self._base}.new and .old",
                )
            self.ask("open", password=begun)  # or the only password that opens it would be lost
            self._write(file, begun)
            remove_file(f"{self._base}.new")
        return self._end()

    def _file(self) -> str:
        """The secret's file, if the password comes from one of its own. Raises RefusedError."""
        source = self.secret().source
        name = self.repository.name
        if not source.file:
            raise RefusedError(
                f"the password of repository {name} comes from {describe(source)},"
                " which capkeep cannot change",
                hint=f"capkeep key add {name}, put the new password there, see that"
                f" `capkeep check {name}` works, then capkeep key remove {name} OLD-KEY",
            )
        file = os.path.realpath(source.file)
        for room in self.plan.rooms:
            own = "password" if room.repository == name else ""
            if any(_is(s, file) and s.name != own for s in room.secrets):
                raise RefusedError(
                    f"{file} is a secret of {room.name} too",
                    hint=f"give repository {name} a file of its own, `capkeep apply`, then rotate",
                )
        return file

    def _begin(self, password: str) -> None:
        current = self.password()
        if password == current:
            raise RefusedError("that is the password already", hint="choose another one")
        self._write(f"{self._base}.new", password)
        self.ask("add", password=password)
        self._write(f"{self._base}.old", current)

    def _end(self) -> str:
        """Remove the old key, once the one that the configuration leads to opens the repository."""
        old = self._left("old")
        key = current(self.ask("list"))
        for _ in range(SAME_PASSWORD):
            before = self._opened_by(old) if old else ""
            if not before:
                break
            if before == key:
                raise RefusedError(
                    f"{self.secret().source.file} holds the old password again",
                    hint="put the new one there, or remove what is left of the rotation:"
                    f" {self._base}.old",
                )
            self.ask("remove", key=before)
        remove_file(self._note())
        remove_file(f"{self._base}.old")
        return key

    def _opened_by(self, password: str) -> str:
        """The id of the key that a password opens; "" if there is none any more."""
        try:
            return str(self.ask("open", password=password).get("key"))
        except StepError as error:
            if error.failure is Failure.WRONG_PASSWORD:
                return ""
            raise

    def _left(self, what: str) -> str | None:
        """A password that a rotation has left, or None."""
        try:
            with open(f"{self._base}.{what}", "rb") as file:
                return secret_text(file.read())
        except FileNotFoundError:
            return None

    def _write(self, path: str, password: str) -> None:
        content = password.encode(errors="surrogateescape") + b"\n"
        own = path.startswith(f"{self._folder}/")  # of the rotation's, which root alone reads
        owner, mode = (self._owner, 0o600) if own else secret_file(self.plan, self._owner)
        write_atomic(path, content, owner=owner, mode=mode)


def _is(secret: Secret, file: str) -> bool:
    return bool(secret.source.file) and os.path.realpath(secret.source.file) == file


def _made() -> str:
    """As `openssl rand -base64 32` writes it: an engine may go by that nobody can guess it."""
    return base64.b64encode(secrets.token_bytes(PASSWORD_BYTES)).decode()


def current(result: Message) -> str:
    """The id of the key that opened the repository. Raises StepError."""
    keys = result.get("keys")
    for key in keys if isinstance(keys, list) else ():
        if isinstance(key, dict) and key.get("current"):
            return str(key.get("id"))
    raise StepError(Failure.ENGINE, "the engine does not say which key it used")
