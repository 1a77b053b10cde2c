"""The recovery kit: what brings backups back on a machine that has nothing, as a shell script.

It can be read on paper and run: comments say what to do, and the commands write a configuration with
which capkeep reaches the repositories again, with the secrets it needs for that.
"""

import shlex
import time
from typing import Final, NamedTuple

from capkeep.config.quoting import text as quoted
from capkeep.plan.model import Repository
from capkeep.report import key_sheet
from capkeep.report.key_sheet import IDENTITY, Sheet
from capkeep.report.text import clean_lines

PUBLIC: Final = 0o644
SECRET: Final = 0o600
LONGEST: Final = 32  # name of a repository in the configuration
FORMER: Final = "former"  # below the configuration's directory: what it was, for reading
FILES: Final = ("known-hosts", "ca-file")  # options that name a file

PUT: Final = """
put() {  # put FILE MODE <content
  case $1 in */*) mkdir -p -m 755 "${1%/*}";; esac
  (umask 077 && cat >"$1") && chmod "$2" "$1"
}
"""


class File(NamedTuple):
    """A file as it is written on the new machine."""

    path: str
    content: str
    mode: int


class Kit(NamedTuple):
    """All that is in it."""

    hostname: str
    version: str  # of capkeep
    command: tuple[str, ...]  # how capkeep is called for this installation
    folder: str  # of its configuration
    sheets: tuple[Sheet, ...]  # of repositories that a password opens
    mirrors: tuple[Repository, ...]  # of those that are plain files
    public: tuple[tuple[str, str], ...]  # content of the files that options of repositories name
    former: tuple[tuple[str, str], ...]  # the whole configuration, by file name, for reading

    @property
    def repositories(self) -> tuple[Repository, ...]:
        """All of them."""
        return (*(sheet.repository for sheet in self.sheets), *self.mirrors)


def script(kit: Kit) -> str:
    """The kit. POSIX shell: `sh FILE` writes the configuration and applies it."""
    lines = [
        "#!/bin/sh",
        *(f"# {line}".rstrip() for line in _instructions(kit)),
        "",
        "set -eu",
        *_refusals(kit),
        PUT.strip("\n"),
        f"install -d -m 755 {shlex.quote(kit.folder)}",
        f"install -d -m 700 {shlex.quote(_secrets(kit))}",
    ]
    for file in files(kit):
        lines += _written(file)
    call = " ".join(map(shlex.quote, kit.command))
    lines += ["", 'PATH="$PATH:/usr/local/bin:/opt/capkeep/bin"', f"{call} apply --hand-over"]
    return "\n".join(lines) + "\n"


def files(kit: Kit) -> list[File]:
    """What the script writes."""
    folder = _secrets(kit)
    found = []
    for sheet in kit.sheets:
        base = f"{folder}/{sheet.repository.name}"
        found.append(File(base, sheet.password, SECRET))
        found += [File(f"{base}.{n}", text, SECRET) for n, text in sheet.credentials]
    found += [File(path, text, PUBLIC) for path, text in kit.public]
    found += [File(f"{kit.folder}/{FORMER}/{name}", text, PUBLIC) for name, text in kit.former]
    return [*found, File(f"{kit.folder}/capkeep.toml", configuration(kit), PUBLIC)]


def configuration(kit: Kit) -> str:
    """Enough of a configuration to look into the repositories and to restore, and for no more."""
    credentials = {s.repository.name: [n for n, _ in s.credentials] for s in kit.sheets}
    names = _names(kit)
    lines = ["# For restoring only; what was here before is in the directory former."]
    for repository in kit.repositories:
        base = f"{_secrets(kit)}/{repository.name}"
        lines += [
            "", f"[repositories.{names[repository.name]}]",
            f"engine = {quoted(repository.engine)}",
            f"location = {quoted(repository.location)}",
        ]  # fmt: skip
        if repository.name in credentials:
            lines += [f"password = {_source(base)}", "key-exported = true"]
        for name in credentials.get(repository.name, ()):
            key = f"options.{IDENTITY}" if name == IDENTITY else f"credentials.{name}"
            lines.append(f"{key} = {_source(f'{base}.{name}')}")
        lines += [f"environment.{n} = {quoted(v)}" for n, v in repository.environment]
        for name, value in repository.options:
            if name in key_sheet.NOT_SECRET:
                lines.append(f"options.{name} = {value if name == 'port' else quoted(value)}")
        if repository.owners:
            lines.append(f"owners = {quoted(repository.owners)}")
        if repository.engine_network:
            lines.append("engine-network = true")
    used = ", ".join(map(quoted, names.values()))
    lines += ["", "[jobs.recovery]", f"repositories = [{used}]", 'include = ["/etc"]']
    return "\n".join(lines)


def _names(kit: Kit) -> dict[str, str]:
    """What each repository is called there: those of targets are many tables, and no name has a dot."""
    found: dict[str, str] = {}
    taken = {repository.name for repository in kit.repositories}
    for name in (repository.name for repository in kit.repositories):
        tries = [name.replace(".", "-"), *(f"repository-{n}" for n in range(len(taken) + 1))]
        fit = (t for t in tries if len(t) <= LONGEST and t not in taken)
        found[name] = next(fit) if "." in name else name
        taken.add(found[name])
    return found


def _instructions(kit: Kit) -> list[str]:
    """For whoever stands before an empty machine."""
    engines = sorted({sheet.engine for sheet in kit.sheets} | {r.engine for r in kit.mirrors})
    call = " ".join(map(shlex.quote, kit.command))
    several = len(kit.repositories) > 1
    which = f" --repository {_names(kit)[kit.repositories[0].name]}" if several else ""
    lines = [
        f"capkeep: recovery kit of {kit.hostname}",
        time.strftime("made %Y-%m-%d %H:%M UTC", time.gmtime()),
        "",
        "Whoever has this can read every file in the backups. Keep it away from the machine, and safe.",
        "Make a new one after a change of passwords, repositories or places.",
        "",
        "On an empty machine, as root:",
        "",
        f"1. install {' and '.join(engines)} or newer, and capkeep {kit.version}:",
        f"     python3 -m venv /opt/capkeep && /opt/capkeep/bin/pip install capkeep=={kit.version}",
        "     ln -s /opt/capkeep/bin/capkeep /usr/local/bin/",
        "2. sh THIS-FILE      (writes what is below, then: capkeep apply)",
        f"3. {call} restore latest --to /mnt{which}",
        "",
        "A repository in a directory must be there before 2: attach its disk at the same place.",
        f"{call} snapshots lists what else there is than the latest.",
        f"The configuration as it was is put into {kit.folder}/{FORMER}, for reading.",
        "Of secrets only those of the repositories are in here.",
    ]
    for sheet in kit.sheets:
        lines += ["", f"Without capkeep, {sheet.repository.name}:", ""]
        lines += [f"  {line}".rstrip() for line in "\n".join(key_sheet.body(sheet)).splitlines()]
    for repository in kit.mirrors:
        lines += [
            "", f"Without capkeep, {repository.name}:", "",
            f"  location   {repository.location}",
            "  its newest state lies there as plain files; rdiff-backup restore brings back all else",
        ]  # fmt: skip
    return list(clean_lines("\n".join(lines)))


def _refusals(kit: Kit) -> list[str]:
    """Nothing of a machine that is in use is overwritten."""
    there = shlex.quote(f"{kit.folder}/capkeep.toml")
    lines = [
        f"if [ -e {there} ]; then",
        f"  echo {there} 'is there already: this is not an empty machine' >&2",
        "  exit 1",
        "fi",
    ]
    if "--user" not in kit.command:
        lines = ['[ "$(id -u)" = 0 ] || { echo "as root" >&2; exit 1; }', *lines]
    return lines


def _written(file: File) -> list[str]:
    content = file.content.rstrip("\n").split("\n")
    end = "END-OF-FILE"
    while end in content:
        end += "-"
    return ["", f"put {shlex.quote(file.path)} {file.mode:o} <<'{end}'", *content, end]


def _secrets(kit: Kit) -> str:
    return f"{kit.folder}/secrets"


def _source(path: str) -> str:
    return f"{{ file = {quoted(path)} }}"
