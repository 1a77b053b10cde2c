"""An engine that restores something else and says that all is well is not believed."""

import os
from pathlib import Path

import pytest

from tests.system.conftest import Product

# It does what restic does, but for one thing; a room's engine cannot start another program.
LIAR = """#!/usr/bin/python3 -I
import os, sys
if "restore" not in sys.argv:
    os.execv("/usr/bin/restic", ["restic", *sys.argv[1:]])
target = next(w.partition("=")[2] for w in sys.argv if w.startswith("--target="))
path = target + {path!r}
lie = {lie!r}
if lie != "nothing":
    os.makedirs(os.path.dirname(path), exist_ok=True)
if lie == "link":
    os.symlink("/etc/passwd", path)
elif lie != "nothing":
    with open(path, "w") as file:
        file.write("kep" if lie == "size" else "kept\\n")
    os.chown(path, 0, 70000 if lie == "owner" else 0)
    os.chmod(path, 0o4755 if lie == "mode" else 0o600)
    state = {state!r}
    os.utime(path, ns=(state, state + (lie == "time")))
print('{{"message_type":"summary","total_files":1,"files_restored":1}}')
"""
SAID = {
    "nothing": "not restored", "mode": "mode 4755", "owner": "owner 0:70000", "link": "is not a file",
    "size": "3 bytes", "time": "time differs",
}  # fmt: skip


@pytest.mark.parametrize("lie", SAID)
def test_what_was_not_restored_as_it_was_is_named(product: Product, lie: str) -> None:
    file = product.source / "file"
    os.chown(file, 0, 0)
    file.chmod(0o600)
    liar = Path(product.home.base, "liar")
    path, state = str(file), file.stat().st_mtime_ns
    liar.write_text(LIAR.format(path=path, lie=lie, state=state))
    liar.chmod(0o755)
    program = Path(product.home.base, "etc/capkeep.toml").read_text().split('program = "')[1]
    product.configure(program.split('"')[0], str(liar))
    assert product("run").code == 0
    target = Path(product.home.base, "back")
    restored = product.root("restore", "latest", str(file), "--to", str(target))
    assert restored.code == 1, restored
    assert SAID[lie] in restored.out + restored.err
    assert str(file) in restored.out + restored.err
