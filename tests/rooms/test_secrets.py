"""Fetching secrets: whatever lies in a secret's place, nobody waits for it."""

import os
import time
from pathlib import Path

import pytest

from capkeep.host.secrets import SecretError, fetch
from capkeep.plan.model import Grant, Mode, Secret, SecretSource

GRANT = Grant(user="nobody", uid=65534, gid=65534)


def secret(*, file: str = "", command: tuple[str, ...] = ()) -> str:
    return fetch(Secret("password", SecretSource(file=file, command=command)), GRANT, Mode.SYSTEM)


def test_a_file_loses_the_newline_of_its_editor(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b" two words \r\n")
    assert secret(file=str(path)) == " two words "


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "missing", "empty"])
def test_what_is_no_file_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "secret"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.write_text("\n")
    start = time.monotonic()
    with pytest.raises(SecretError, match="password"):
        secret(file="/dev/zero" if kind == "device" else str(path))
    assert time.monotonic() - start < 5


def test_a_command_runs_as_the_rooms_user_without_its_parents_groups() -> None:
    assert secret(command=("/usr/bin/id", "-u")) == "65534"
    assert secret(command=("/usr/bin/id", "-G")) == "65534"


def test_what_a_command_leaves_behind_is_not_waited_for() -> None:
    start = time.monotonic()
    assert secret(command=("/bin/sh", "-c", "sleep 8 & echo words")) == "words"
    assert time.monotonic() - start < 5


def test_a_command_that_fails_has_no_secret() -> None:
    with pytest.raises(SecretError, match="exited with 3"):
        secret(command=("/bin/sh", "-c", "echo words; exit 3"))


def test_a_credential_that_the_service_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "capkeep-test-given").write_text("words\n")
    source = Secret("password", SecretSource(credential="capkeep-test-given"))
    with pytest.raises(SecretError, match="/run/secrets"):
        fetch(source, GRANT, Mode.SYSTEM)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert fetch(source, GRANT, Mode.SYSTEM) == "words"
