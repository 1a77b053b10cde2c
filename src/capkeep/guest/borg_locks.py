"""Whose borg locks are alive: borg tells by host name and process id, which mean nothing here.

Every room has process ids of its own, so a dead holder's number may be somebody else's now, and a
living holder's be nobody's. So each of our processes that locks holds a file of its own locked
(flock(2)) as long as it lives, and its name is in the lock's "host". Beside all of them lies the
name of their folder: what another folder's processes have locked is left alone.
"""

import fcntl
import os
import time

PREFIX = "borg-session-"
FOLDER_NAME = "borg-folder"


def own(folder: str) -> None:
    """Have borg lock in this process's name, and take dead sessions of this folder for dead."""
    from borg import platform

    here = _folder_name(folder)
    session, held = _claim(folder)
    host = f"capkeep@{here}@{session}"
    others = platform.process_alive

    def process_alive(host: str, pid: int, thread: int) -> bool:
        words = host.split("@")
        if len(words) != 3 or words[:2] != ["capkeep", here]:
            return bool(others(host, pid, thread))
        return words[2] == session or _lives(f"{folder}/{PREFIX}{words[2]}")

    def get_process_id() -> tuple[str, int, int]:
        return host, held, 0  # the descriptor, which stays open: nobody needs our process id

    platform.get_process_id = get_process_id
    platform.process_alive = process_alive


def _claim(folder: str) -> tuple[str, int]:
    for name in os.listdir(folder):
        if name.startswith(PREFIX):
            _lives(f"{folder}/{name}")  # removes it if not; its locks are known as dead without it
    while True:
        session = os.urandom(8).hex()
        path = f"{folder}/{PREFIX}{session}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return session, fd
        except OSError:
            pass  # another one that is starting has taken it for dead
        os.close(fd)


def _lives(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _folder_name(folder: str) -> str:
    path = f"{folder}/{FOLDER_NAME}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    else:
        os.write(fd, os.urandom(8).hex().encode())
        os.close(fd)
    for _ in range(100):  # whoever made it may not have written it yet
        with open(path, encoding="ascii") as file:
            if name := file.read():
                return name
        time.sleep(0.01)
    os.unlink(path)  # its maker died
    return _folder_name(folder)
