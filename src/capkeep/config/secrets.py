"""Whether a secret's source is there and is nobody else's to read. The secret is not read."""

import os
import stat

from capkeep.config.mistakes import Collector, Place
from capkeep.config.sources import Owner
from capkeep.values import PLAIN_STORES, SEALED_STORES, SecretSource, given_stores


def check_secret(source: SecretSource, place: Place, owner: Owner, collector: Collector) -> None:
    """Adds a mistake for each thing that would keep the secret from being fetched, or secret."""
    if source.file:
        _check_file(source.file, place, owner, collector)
    elif source.credential:
        _check_credential(source.credential, place, collector)
    else:
        _check_program(source.command[0], place, collector)


def _check_file(path: str, place: Place, owner: Owner, collector: Collector) -> None:
    try:
        state = os.stat(path)
    except FileNotFoundError:
        make = f"install -m 600 /dev/null {path}, then write the secret into it"
        collector.mistake(place, f"there is no secret file {path}", make)
        return
    except OSError as error:
        collector.mistake(
            place, f"secret file {path} cannot be looked at: {error.strerror}", "ask as root"
        )
        return
    if not stat.S_ISREG(state.st_mode):
        collector.mistake(place, f"{path} is not a regular file", "name the file with the secret")
    elif unsafe := owner.unsafe_secret(state):
        collector.mistake(
            place, f"secret file {path} {unsafe}", f"{owner.chown} {path}; chmod 600 {path}"
        )
    elif not state.st_size:
        collector.mistake(place, f"secret file {path} is empty", "write the secret into it")


def _check_credential(name: str, place: Place, collector: Collector) -> None:
    stores = PLAIN_STORES + SEALED_STORES + given_stores()
    if any(os.path.lexists(f"{store}/{name}") for store in stores):
        return
    hint = f"make it: systemd-creds encrypt --name={name} - {SEALED_STORES[0]}/{name}"
    closed = [s for s in stores if os.path.isdir(s) and not os.access(s, os.X_OK)]
    if closed:
        hint = f"ask as root: you cannot look into {', '.join(closed)}"
    collector.mistake(place, f"there is no credential {name} in {', '.join(stores)}", hint)


def _check_program(path: str, place: Place, collector: Collector) -> None:
    if problem := not_a_program(path):
        collector.mistake(place, problem, "name a program by its absolute path")


def not_a_program(path: str) -> str:
    """Why a path is not a program that can be run; "" if it is one."""
    try:
        state = os.stat(path)
    except OSError as error:
        return f"program {path}: {(error.strerror or 'cannot be found').lower()}"
    if not stat.S_ISREG(state.st_mode) or not state.st_mode & 0o111:
        return f"{path} is not a program"
    return ""
