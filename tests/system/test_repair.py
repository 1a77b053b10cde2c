"""The repairs of docs/how-to/repair.md, as printed there, and what is left afterwards."""

import re
import subprocess
from pathlib import Path

from tests.engines import restic_programs
from tests.system.conftest import SECONDS, Product
from tests.system.scenes import random_file
from tests.system.test_upkeep import keep, listed

PAGE = Path(__file__).parents[2] / "docs/how-to/repair.md"


def commands(title: str) -> str:
    """What is typed below a heading."""
    section = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```console\n(.+?)^```", section, re.MULTILINE | re.DOTALL)
    typed = re.findall(r"^# (.+)$", "".join(blocks), re.MULTILINE)
    assert typed
    return "set -e\n" + "\n".join(typed)


def repair(product: Product, title: str, folder: str, **more: str) -> None:
    """With this installation's places in the place of those of the page."""
    text = commands(title)
    owner = product.repository.stat().st_uid
    for old, new in (("/srv/backup", str(product.repository)), ("/etc/capkeep", f"{product.home.base}/etc"),
                     ("capkeep-vault:", f"{owner}:{owner}"), ("offsite", "repo"), ("/root/kept-aside", f"{folder}/aside"),
                     *more.items()):  # fmt: skip
        text = text.replace(old, new)
    text = re.sub(r"^(capkeep run)$", r"\1 || test $? = 13", text, flags=re.MULTILINE)
    text = re.sub(
        r"^capkeep ", " ".join(map(_quoted, product.home.command())) + " ", text, flags=re.MULTILINE
    )
    program = restic_programs()["0.18"].parent
    done = subprocess.run(
        ["sh", "-c", text], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False,
        env={"PATH": f"{program}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": folder},
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def test_a_damaged_repository_of_restic_is_repaired(product: Product, tmp_path: Path) -> None:
    programs = restic_programs()
    product.configure(str(programs["0.14"]), str(programs["0.18"]))
    keep(product, '[jobs.job.check]\nread-data = "all"\n')
    random_file(product.source / "large", 1)
    assert product("run").code == 0
    packs = [p for p in (product.repository / "data").rglob("*") if p.is_file()]
    pack = max(packs, key=lambda p: p.stat().st_size)
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    done = product("check", "--job", "job")
    assert done.code == 13, done
    assert pack.name[:8] in done.out + done.err, "the broken pack is named"
    repair(product, "restic", str(tmp_path), PACK=pack.name)
    assert "suspect" not in product("status").out
    assert len(listed(product)) == 2, "the one of before, without what was lost, and the new one"
    target = tmp_path / "back"
    assert product.root("restore", "latest", "--to", str(target)).code == 0
    back = Path(f"{target}{product.source}/large")
    assert back.read_bytes() == (product.source / "large").read_bytes()
