"""rdiff-backup for a normal user's own files, without root anywhere."""

from tests.system.test_user_mode import User, user

__all__ = ["user"]


def test_a_users_own_mirror(user: User) -> None:
    config = user.home / ".config/capkeep/capkeep.toml"
    kept = [
        n
        for n in config.read_text().splitlines()
        if not n.startswith(("password", "[engines", "program"))
    ]
    text = "\n".join(kept).replace('"restic"', '"rdiff-backup"')
    config.write_text(text.replace(f"{user.home}/repo", f"{user.home}/mirror"))
    for words in (("apply",), ("init",), ("run",), ("snapshots",), ("check", "--read-data", "all")):
        done = user(*words)
        assert done.code == 0, done
    letter = user.documents / "letter"
    assert (user.home / f"mirror{letter}").read_text() == "dear all\n"
    done = user("restore", "latest", str(letter), "--to", f"{user.home}/back")
    assert done.code == 0, done
    assert (user.home / f"back{letter}").read_text() == "dear all\n"
