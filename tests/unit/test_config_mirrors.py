"""What a job cannot ask of an rdiff-backup repository is told at `apply`, not at night."""

from tests.unit.test_config_load import Etc, etc

__all__ = ["etc"]

MIRROR = """\
[engines.rdiff-backup]
program = "@/restic"
[repositories.m]
engine = "rdiff-backup"
location = "@/mirror"
[jobs.j]
repositories = ["m"]
include = ["/etc"]
"""


def test_a_mirror_needs_no_password_and_no_key_to_be_kept_elsewhere(etc: Etc) -> None:
    etc.main(MIRROR + '[jobs.j.retention]\nkeep-within = "90d"\nkeep-last = 3\n')
    (repository,) = etc.load().repositories
    assert (repository.engine, repository.key_exported) == ("rdiff-backup", True)
    assert repository.secrets == ()


def test_what_it_cannot_do_is_a_mistake(etc: Etc) -> None:
    for more, key, words in (
        ("[jobs.j.retention]\nkeep-daily = 7\n", "jobs.j.retention.keep-daily", "keep-within"),
        ('[jobs.j.retention]\nkeep-tags = ["x"]\n', "jobs.j.retention.keep-tags", "keep-within"),
        ('[jobs.k]\nrepositories = ["m"]\ninclude = ["/srv"]\n', "jobs.k.repositories", "its own"),
        ('[repositories.m]\npassword = { file = "@/secret" }\n', "password", "take it away"),
    ):
        text = MIRROR + more
        if more.startswith("[repositories.m]"):
            text = MIRROR.replace("[jobs.j]", 'password = { file = "@/secret" }\n[jobs.j]')
        etc.main(text)
        mistake = etc.mistake()
        assert key in mistake.sentence()
        assert words in mistake.sentence()
    etc.main(MIRROR.replace("@/mirror", "sftp:u@h:/x"))
    assert '"/path", or take restic or borg' in etc.mistake().sentence()
    assert "run anything on the other" in etc.mistake().sentence()
    etc.main(
        MIRROR.replace('include = ["/etc"]', 'include = ["/etc"]\ndumps = ["p"]')
        + '[dumps.p]\nkind = "postgresql"\nuser = "nobody"\nstream = true\n'
    )
    assert any("streamed" in m.sentence() for m in etc.mistakes())


def test_whom_the_files_belong_to(etc: Etc) -> None:
    etc.main(MIRROR.replace('location = "@/mirror"', 'location = "@/mirror"\nowners = "names"'))
    assert "only root can give files to their owners" in etc.mistake().sentence()
    etc.main(MIRROR.replace('location = "@/mirror"', 'location = "@/mirror"\nowners = "mine"'))
    assert "repositories.m.owners" in etc.mistake().sentence()
    restic = MIRROR.replace(
        "[jobs.j]", 'password = { file = "@/secret" }\nowners = "names"\n[jobs.j]'
    )
    etc.main(restic.replace("rdiff-backup", "restic"))
    assert "keeps owners in its own files" in etc.mistake().sentence()


def test_an_engine_in_a_virtual_environment(etc: Etc) -> None:
    folder = etc.root / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (folder / "bin/python").symlink_to("/usr/bin/python3")
    program = folder / "bin/rdiff-backup"
    text = MIRROR.replace("@/restic", str(program))
    for first, words in (
        (f"#!{folder}/bin/python", ""),
        (f"#!/bin/sh\n'''exec' {folder}/bin/python", "through a shell"),
        (f"#!{folder}/bin/python", "which no room sees"),
    ):
        program.write_text(f"{first}\n")
        program.chmod(0o755)
        if "sees" in words:
            (folder / "bin/python").unlink()
            (folder / "bin/python").symlink_to(folder.parent / "python")
        etc.main(text)
        if words:
            assert words in etc.mistake().sentence()
        else:
            assert etc.load().repositories[0].environment_folder == str(folder)
