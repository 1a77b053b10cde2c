"""The recovery kit: everything that brings backups back, for root alone, and sealed if asked."""

import re
import stat
import subprocess
from pathlib import Path

from capkeep.config.load import load
from tests.rooms.house import wait_for
from tests.system.conftest import SECONDS, Product

PASSPHRASE = "correct horse"


def text_of(argv: list[str]) -> str:
    """What another program says."""
    done = subprocess.run(argv, capture_output=True, timeout=SECONDS, check=True)
    return done.stdout.decode()


def agents() -> set[str]:
    """gpg-agents, which stay when nobody ends them."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "comm").read_text() == "gpg-agent\n":
                found.add(entry.name)
        except OSError:
            continue
    return found


def test_it_is_for_root_alone_and_says_everything(product: Product, tmp_path: Path) -> None:
    assert product("kit").code == 4
    printed = product.root("kit")
    assert printed.code == 4
    assert "no terminal" in printed.err
    place = tmp_path / "kit"
    done = product.root("kit", "--output", str(place))
    assert done.code == 0, done
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    text = place.read_text()
    assert (text.count("a password\n"), str(product.repository) in text) == (2, True)
    assert "restic 0.14.0" in text
    assert product.root("kit", "--output", str(place)).code == 4, "nothing is replaced unasked"
    assert product.root("kit", "nobody", "--force").code == 2
    assert "exported" not in product("status").out, "it is the export of the key too"


def test_what_it_writes_is_a_configuration_that_restores(product: Product, tmp_path: Path) -> None:
    """The commands of the kit, for an installation of another place."""
    kept = product.source / "kept"
    kept.write_text("kept\n")
    assert product("run").code == 0
    text = product.root("kit", "--force").out
    before = str(product.home.places.config)
    assert text.count("apply") >= 2
    folder = tmp_path / "etc"
    script = re.sub(
        r"^capkeep .*apply --hand-over$",
        "true",
        text.replace(before, str(folder)),
        flags=re.MULTILINE,
    )
    kit = tmp_path / "kit"
    kit.write_text(script)
    subprocess.run(["sh", str(kit)], check=True, timeout=SECONDS)
    assert subprocess.run(["sh", str(kit)], check=False, timeout=SECONDS).returncode == 1
    assert stat.S_IMODE((folder / "secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "secrets/repo").stat().st_mode) == 0o600
    former = Path(before, "capkeep.toml").read_text().replace(before, str(folder))
    assert (folder / "former/capkeep.toml").read_text() == former
    config = load(str(folder))
    (repository,) = config.repositories
    assert (repository.location.text, repository.password.file) == (
        str(product.repository), f"{folder}/secrets/repo",
    )  # fmt: skip


def test_it_is_sealed_for_whom_one_says(product: Product, tmp_path: Path) -> None:
    before = agents()
    home, key = tmp_path / "home", tmp_path / "key"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--quiet", "--homedir", str(home), "--pinentry-mode", "loopback"]
    text_of([*gpg, "--passphrase", "", "--quick-generate-key", "somebody", "future-default"])
    fingerprint = re.findall(
        r"^fpr:+(\w{40}):", text_of([*gpg, "--with-colons", "--list-keys"]), re.MULTILINE
    )[0]
    text_of(["age-keygen", "-o", str(key)])
    recipient = text_of(["age-keygen", "-y", str(key)]).strip()
    opening = {
        "--passphrase-file=-": [*gpg, "--passphrase", PASSPHRASE, "--decrypt"],
        f"--gpg={fingerprint}": [*gpg, "--decrypt"],
        f"--age={recipient}": ["age", "--decrypt", "--identity", str(key)],
    }
    for option, opened in opening.items():
        place = tmp_path / option[:5]
        done = subprocess.run(
            product.home.command("kit", "--output", str(place), option), cwd="/",
            input=f"{PASSPHRASE}\n".encode(), capture_output=True, timeout=SECONDS, check=False,
            env={"PATH": "/usr/sbin:/usr/bin", "GNUPGHOME": str(home)},
        )  # fmt: skip
        assert done.returncode == 0, done
        assert b"password" not in place.read_bytes()
        assert text_of([*opened, str(place)]).startswith("#!/bin/sh\n# capkeep: recovery kit of")
    assert product.root("kit", "--gpg", fingerprint[:16]).code == 2, "too short to be one's own"
    refused = product.root("kit", "--age", "nobody")
    assert (refused.code, "age did not do it" in refused.err) == (4, True), refused
    text_of(["gpgconf", "--homedir", str(home), "--kill", "all"])
    wait_for(lambda: agents() <= before)
