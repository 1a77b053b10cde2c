"""What a server writes for a target: the target's part of the configuration, and a script that puts it there.

Pure. The script is POSIX shell for root on the target; whoever runs it can read before what it does.
Every text that comes from a configuration stands in it as one quoted word.
"""

import base64
import re
import shlex
from typing import Final, NamedTuple

from capkeep.config.quoting import toml

PACKAGES: Final = {"restic": "restic", "borg": "borgbackup", "rdiff-backup": "rdiff-backup"}
NAME_MOST: Final = 32
END: Final = "END-OF-CAPKEEP"
LINE: Final = 76  # characters of base64 (RFC 2045)


class Enrolment(NamedTuple):
    """What a target is to let a server have."""

    name: str  # of the repository on the target, and in the file's name
    server: str  # its host name, for people
    target: str  # what the server calls it
    job: str
    engine: str
    key: str  # the server's public key
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    one_file_system: bool = False
    canary: bool = True
    keeps_password: bool = False  # nobody on the server has one
    timeout_seconds: int = 24 * 3600  # after which the server stops its run


class Ground(NamedTuple):
    """Where things are on a target."""

    config: str = "/etc/capkeep"
    home: str = "/opt/capkeep"  # where capkeep is installed by hand (docs/tutorial.md)
    booted: str = "/run/systemd/system"  # is there where systemd runs the host (sd_booted(3))


GROUND: Final = Ground()


class Carried(NamedTuple):
    """An installed capkeep that goes along: a tar (gzip) of packages, and where it can run."""

    packages: bytes
    python: str  # "3.11"
    machine: str  # "x86_64"


def plain_name(*texts: str) -> str:
    """A name for tables and files (config.syntax.NAME_PATTERN) that says as much as can be of others."""
    found = re.sub(r"[^a-z0-9_-]+", "-", "-".join(texts).lower()).strip("-_")
    return found[:NAME_MOST].rstrip("-_") or "server"


def drop_in_path(name: str, ground: Ground = GROUND) -> str:
    """Where the target has it."""
    return f"{ground.config}/conf.d/pulled-by-{name}.toml"


def start_path(ground: Ground = GROUND) -> str:
    """Where the target has who starts its rooms, if a script wrote it; one for all servers."""
    return f"{ground.config}/conf.d/enrolled-start.toml"


def secret_path(name: str, ground: Ground = GROUND) -> str:
    """Where the target has the password that it keeps."""
    return f"{ground.config}/secrets/pulled-by-{name}"


def password_line(name: str, ground: Ground = GROUND) -> str:
    """That in its configuration."""
    return f"password = {{ file = {toml(secret_path(name, ground))} }}"


def drop_in(enrolment: Enrolment, ground: Ground = GROUND) -> str:
    """The target's part of the configuration."""
    e = enrolment
    lines = [
        f"# Made by `capkeep enroll {_comment(e.target)}` on {_comment(e.server)}.",
        "# That one comes for these files. What is changed here must be changed there too.",
        f"[repositories.{_key(e.name)}]",
        f"engine = {toml(e.engine)}",
        f"pulled-by = {toml(e.key)}",
        *([password_line(e.name, ground)] if e.keeps_password else []),
        "",
        f"[jobs.{_key(e.job)}]",
        f"repositories = {toml([e.name])}",
        *_list("include", e.include),
        *_list("exclude", e.exclude),
        *(["one-file-system = true"] if e.one_file_system else []),
        *([] if e.canary else ["canary = false"]),
    ]
    return "\n".join((*lines, ""))


def _key(name: str) -> str:
    """A part of a table's name; bare if it is as names are."""
    return name if name == plain_name(name) else toml(name)


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _list(key: str, values: tuple[str, ...]) -> list[str]:
    """A setting with a line for each value, or none at all."""
    return [f"{key} = [", *(f"  {toml(v)}," for v in values), "]"] if values else []


def script(
    enrolment: Enrolment,
    version: str,
    *,
    carried: Carried | None = None,
    remove: bool = False,
    dry_run: bool = False,
    start: str = "",
    ground: Ground = GROUND,
) -> str:
    """The whole of it. `version` is the server's capkeep; with `carried` it is installed if missing.

    `start` is who is to start the rooms there ("" for what the target offers).
    """
    e = enrolment
    action = "remove_it" if remove else "show_it" if dry_run else "write_it"
    action = "show_removal" if remove and dry_run else action
    values = {
        "server": _comment(e.server), "version": version, "drop_in": drop_in_path(e.name, ground),
        "engine": e.engine, "engine_package": PACKAGES.get(e.engine, e.engine),
        "content": drop_in(e, ground), "secret": secret_path(e.name, ground) if e.keeps_password else "",
        "password_line": password_line(e.name, ground) if e.keeps_password else "",
        "carried": "yes" if carried else "",
        "carried_python": carried.python if carried else "",
        "carried_machine": carried.machine if carried else "", "config": ground.config, "home": ground.home,
        "start": start, "start_file": start_path(ground), "booted": ground.booted,
    }  # fmt: skip
    does = "takes away what" if remove else "lets"
    what = "came for" if remove else "come for"
    head = (
        "#!/bin/sh\n"
        f"# This {does} {_comment(e.server)} {what} files of this host:"
        f" made by `capkeep enroll {_comment(e.target)}` there.\n"
        "# Read it, then run it as root: sh THIS-FILE\n"
    )
    given = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
    unpack = _unpack(carried) if carried else "unpack() { return 1; }\n"
    return f"{head}set -eu\n{given}\n{_FUNCTIONS}\n{unpack}\nmain {action}\n"


def _unpack(carried: Carried) -> str:
    """A function that writes the packages into the directory that it is given."""
    text = base64.b64encode(carried.packages).decode()
    lines = "\n".join(text[at : at + LINE] for at in range(0, len(text), LINE))
    return f"unpack() {{\n  base64 -d <<'{END}' | tar -xzf - -C \"$1\"\n{lines}\n{END}\n}}\n"


# All of it is read before anything is done: a connection that breaks leaves nothing half done.
_FUNCTIONS: Final = r"""
fail() {
  code=$1
  shift
  printf 'enroll: %s\n' "$@" >&2
  exit "$code"
}

say() { printf '%s\n' "$*"; }

find_capkeep() {
  for capkeep in "$home/bin/capkeep" "$(command -v capkeep || :)" /usr/local/bin/capkeep; do
    if [ -n "$capkeep" ] && [ -x "$capkeep" ]; then return 0; fi
  done
  capkeep=
  return 1
}

install_capkeep() {
  [ -n "$carried" ] || fail 4 "there is no capkeep on this host" \
    "install it as on the server (python3 -m venv $home && $home/bin/pip install capkeep)," \
    "or enroll with --with-capkeep, which brings the server's along"
  command -v python3 >/dev/null || fail 4 "there is no python3 here: apt-get install python3"
  here=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ "$here" = "$carried_python" ] || fail 4 \
    "the server's capkeep is for Python $carried_python, and here is $here: install capkeep here by itself"
  here=$(uname -m)
  [ "$here" = "$carried_machine" ] || fail 4 \
    "the server's capkeep is for $carried_machine, and this is $here: install capkeep here by itself"
  [ ! -e "$home" ] || fail 4 "$home is there already, and has no capkeep in it"
  rm -rf "$home.new"
  python3 -m venv --without-pip "$home.new" || fail 4 "apt-get install python3-venv"
  unpack "$(echo "$home.new"/lib/python3*/site-packages)"
  printf '#!%s\nfrom capkeep.__main__ import main\nmain()\n' "$home/bin/python3" \
    >"$home.new/bin/capkeep"
  chmod 0755 "$home.new/bin/capkeep"
  chown -R 0:0 "$home.new"
  chmod -R go-w "$home.new"
  mv "$home.new" "$home"
  capkeep=$home/bin/capkeep
  say "made $home, with the server's capkeep $version"
}

need_capkeep() {
  find_capkeep || install_capkeep
  found=$("$capkeep" --version) || fail 4 "$capkeep does not run"
  [ "$found" = "capkeep $version" ] ||
    say "note: here is $found, and $server has $version: better have the same"
}

need_password() {
  [ -n "$secret" ] || return 0
  # What opens the backups that there are is never exchanged for something else.
  for file in "$drop_in" "$drop_in.before"; do
    line=$(grep '^ *password' "$file" 2>/dev/null | head -n 1) || :
    if [ -n "$line" ] && [ "$line" != "$password_line" ]; then
      fail 4 "$drop_in has a password of another source: $line" \
        "have that password in $secret (root's, mode 0600) and take the line away, then enrol again"
    fi
  done
  made_password=
  if [ -s "$secret" ]; then return 0; fi
  if [ -e "$secret" ] || [ -L "$secret" ]; then fail 4 "$secret is there, and empty: remove it"; fi
  [ -d "${secret%/*}" ] || (umask 077 && mkdir -p "${secret%/*}")
  (umask 077 && head -c 30 /dev/urandom | base64 >"$secret.new") || fail 1 "$secret cannot be written"
  [ "$(wc -c <"$secret.new")" -ge 40 ] || fail 1 "no password could be made"
  sync "$secret.new" 2>/dev/null || :
  mv "$secret.new" "$secret"
  sync "${secret%/*}" 2>/dev/null || :
  made_password=yes
}

say_password() {
  [ -n "$secret" ] || return 0
  [ -z "$made_password" ] || say "made $secret: a password of this host's own"
  say "WHOEVER LOSES THE PASSWORD IN $secret LOSES EVERY BACKUP OF THIS HOST ON $server:"
  say "nobody else has it, and it is in no backup. Keep it off this host too, now: cat $secret"
}

try_config() {
  "$capkeep" config check </dev/null || {
    command -v "$engine" >/dev/null || say "the engine is missing: apt-get install $engine_package" >&2
    return 1
  }
}

write_it() {
  need_capkeep
  mkdir -p "$config/conf.d"
  need_password
  first=yes
  if [ -f "$drop_in" ] || [ -f "$drop_in.before" ] || something_else; then first=; fi
  trap 'put_back; exit 1' HUP INT TERM
  replace "$drop_in" "$content"
  if try_config && choose_start && "$capkeep" apply </dev/null; then
    trap - HUP INT TERM
    rm -f "$drop_in.before" "$start_file.before"
    report
    say_password
    return 0
  fi
  put_back
  if [ -n "$secret" ]; then say "the password in $secret stays" >&2; fi
  fail 1 "the configuration is as it was: see above"
}

# A .before that is there is of a run that was cut off, and the last that was applied.
replace() {
  if [ -f "$1" ] && [ ! -f "$1.before" ]; then cp -p "$1" "$1.before" || return 1; fi
  printf %s "$2" >"$1.new" && chmod 0644 "$1.new" && mv "$1.new" "$1"
}

put_back() {
  trap - HUP INT TERM
  if [ -f "$drop_in.before" ]; then mv "$drop_in.before" "$drop_in"; else rm -f "$drop_in"; fi
  if [ -f "$start_file.before" ]; then mv "$start_file.before" "$start_file"
  elif [ -n "$started" ]; then rm -f "$start_file"; fi
}

# Who starts the rooms: what is asked for, else what is written, else what works here.
choose_start() {
  if [ -n "$start" ]; then write_start "$start" "as asked for"
  elif [ -d "$booted" ]; then say "systemd runs this host"
  elif ! "$capkeep" config show </dev/null | grep '^start = .*# built in$' >/dev/null; then
    say "who starts the rooms is as it is written here: [host] start"
  elif [ -z "$first" ]; then
    say "who starts the rooms stays as it is; for readers without a root parent: --start launcher"
  else
    case $("$capkeep" doctor </dev/null || :) in
      *"launcher: works"*) write_start launcher "systemd does not run this host" ;;
      *)
        if [ ! -x /usr/bin/bwrap ]; then
          say "bubblewrap is missing: apt-get install bubblewrap" >&2
          return 1
        fi
        say "neither systemd nor launchers work here (see: capkeep doctor): capkeep doors must run"
        ;;
    esac
  fi
}

write_start() {
  started=yes
  replace "$start_file" "# Made by \`capkeep enroll\`: who starts the rooms of this host.
[host]
start = \"$1\"
" && say "wrote $start_file: start = \"$1\" ($2)"
}

report() {
  say "wrote $drop_in; $server may come"
  [ -x /usr/sbin/sshd ] || say "there is no sshd here yet: apt-get install openssh-server"
  for key in /etc/ssh/ssh_host_*_key.pub; do
    if [ -f "$key" ]; then ssh-keygen -lf "$key" </dev/null || :; fi
  done
}

show_it() {
  if find_capkeep; then say "there is $("$capkeep" --version) ($capkeep)"; else
    say "capkeep would have to be installed"; fi
  command -v "$engine" >/dev/null || say "the engine is missing: apt-get install $engine_package"
  if [ -n "$secret" ] && [ ! -s "$secret" ]; then
    say "would make a password of this host's own in $secret"
  fi
  if [ -n "$start" ]; then say "would write start = \"$start\" to $start_file"
  elif [ ! -d "$booted" ]; then
    say "would write start = \"launcher\" to $start_file, if that works here, nothing is written, and" \
      "this host has no other jobs"
  fi
  say "would write $drop_in, and run: capkeep apply"
  old=$drop_in
  [ -f "$old" ] || old=/dev/null
  printf %s "$content" | diff -u "$old" - || :
}

remove_it() {
  find_capkeep || fail 4 "there is no capkeep on this host"
  # A removal that was cut off has taken the file away, and perhaps nothing else.
  if [ ! -f "$drop_in" ] && [ ! -f "$drop_in.before" ]; then
    say "$drop_in is not there"
    return 0
  fi
  verb=remove
  if something_else; then verb=apply; fi
  if [ -f "$drop_in" ]; then mv "$drop_in" "$drop_in.before"; fi
  if [ "$verb" = remove ] && [ -f "$start_file" ]; then mv "$start_file" "$start_file.before"; fi
  trap 'put_back; exit 1' HUP INT TERM
  "$capkeep" "$verb" </dev/null || {
    put_back
    fail 1 "$drop_in stays: see above"
  }
  trap - HUP INT TERM
  rm -f "$drop_in.before" "$start_file.before"
  if [ -n "$secret" ] && [ -s "$secret" ]; then
    say "$secret stays: whoever loses it loses the backups that $server has"
  fi
  say "$server comes no more"
}

show_removal() {
  say "would take away $drop_in"
  if something_else; then say "would run: capkeep apply"; else say "would run: capkeep remove"; fi
}

something_else() {
  for file in "$config/capkeep.toml" "$config"/conf.d/*.toml; do
    if [ "$file" != "$drop_in" ] && grep -q '^\[jobs\.' "$file" 2>/dev/null; then return 0; fi
  done
  return 1
}

main() {
  umask 022
  started=
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  export PATH
  [ "$(id -u)" = 0 ] || fail 4 "this is for root: sudo sh THIS-FILE"
  "$1"
}
"""
