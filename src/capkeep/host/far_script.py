"""A script that tells what decides, on another host, how a reader can get its one capability; pure.

Where there is a capkeep its own doctor is asked. Else the script looks at what `host/grants.py` and
`host/pam_seen.py` look at, and tries the same rooms; what it tells is judged elsewhere. It changes nothing
but for one file in a directory of its own, which is gone before it is run. POSIX shell, for root; for
anybody else it tells what he can see.
"""

import shlex
from typing import Final

from capkeep.host import bubblewrap, sshd
from capkeep.host.enroll_script import GROUND, Ground
from capkeep.host.pam_seen import LAUNCHERS, MODULES, PAM
from capkeep.host.pam_stack import CONFIG, MODULE
from capkeep.host.ways_seen import READ, SETTINGS
from capkeep.kernel.facts import OVERFLOW_ID
from capkeep.kernel.launcher import Mark, attribute
from capkeep.plan.model import Grant, Mode

ENGINES: Final = ("restic", "borg", "rdiff-backup")
NEEDED: Final = (bubblewrap.BWRAP, bubblewrap.SETPRIV, bubblewrap.PRLIMIT)
SHOW: Final = ("/usr/bin/grep", "^CapEff:", "/proc/self/status")
PLACE: Final = "/var/lib"  # where launchers would be
MARK: Final = (
    "import os, sys; os.setxattr(sys.argv[1], 'security.capability', bytes.fromhex(sys.argv[2]))"
)
LANDLOCK: Final = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"


def script(login: str, ground: Ground = GROUND) -> str:
    """The whole of it; `login` is the user by whom a server would come."""
    grant = Grant("nobody", OVERFLOW_ID, OVERFLOW_ID, capabilities=(READ,))
    nobody = (bubblewrap.SETPRIV, f"--reuid={OVERFLOW_ID}", f"--regid={OVERFLOW_ID}",
              "--clear-groups", "--")  # fmt: skip
    own = bubblewrap.trial(grant._replace(capabilities=()), Mode.USER, SHOW)
    values = {
        "login": login, "home": ground.home, "booted": ground.booted, "place": PLACE,
        "config": CONFIG, "spec": sshd.SPEC.format(login), "mark_program": MARK,
        "mark": attribute(Mark.PERMITTED).hex(), "landlock_program": LANDLOCK,
    }  # fmt: skip
    # Each is a function that does what it is given with these words.
    lists = {
        "room": bubblewrap.trial(grant, Mode.SYSTEM, SHOW), "own_room": own,
        "own_room_as_nobody": (*nobody, *own), "as_nobody": (*nobody, "/proc/self/fd/9", *SHOW[1:]),
        "needed": NEEDED, "settings": tuple(s.replace(".", "/") for s in SETTINGS), "pam": PAM,
        "engines": ENGINES, "marked": (*LAUNCHERS, f"{PLACE}/capkeep/launchers"),
    }  # fmt: skip
    lines = [f"{key}={shlex.quote(value)}" for key, value in values.items()]
    lines += [f'{key}() {{ "$@" {shlex.join(words)}; }}' for key, words in lists.items()]
    # Not quoted: the shell finds what is another one on each kind of machine.
    folders = (*MODULES, "/lib/*-linux-*/security", "/usr/lib/*-linux-*/security")
    lines.append(f'modules() {{ "$@" {" ".join(f"{f}/{MODULE}" for f in folders)}; }}')
    return "\n".join(("#!/bin/sh", *lines, _BODY))


# Each thing that is told is a line "=NAME", and lines that begin with "|".
_BODY: Final = r"""
tell() { printf '=%s\n' "$1"; awk '{ print "|" $0 }'; }
value() { printf '%s\n' "$2" | tell "$1"; }
limit() { if command -v timeout >/dev/null; then timeout 20 "$@"; else "$@"; fi; }

# The exit code, then what was said.
try() {
  name=$1
  shift
  said=$(limit "$@" 2>&1 </dev/null)
  printf '%s\n%s\n' "$?" "$said" | tell "try $name"
}

files() { for one in "$@"; do if [ -f "$one" ] && [ -r "$one" ]; then tell "file $one" <"$one"; fi; done; }
missing() { for one in "$@"; do if [ ! -x "$one" ]; then printf '%s\n' "$one"; fi; done; }
there() { for one in "$@"; do if [ -e "$one" ]; then printf '%s\n' "$one"; fi; done; }
each_setting() { for one in "$@"; do files "/proc/sys/$one"; done; }
each_folder() { for one in "$@"; do files "$one"/*; done; }
programs() {
  for one in "$@"; do
    if found=$(command -v "$one"); then readlink -f "$found"; fi
  done
}
inheriting() { if command -v getcap >/dev/null; then getcap -r "$@" 2>/dev/null; fi; }

own_doctor() {
  for capkeep in "$home/bin/capkeep" "$(command -v capkeep)" /usr/local/bin/capkeep; do
    if [ -n "$capkeep" ] && [ -x "$capkeep" ]; then
      said=$("$capkeep" --json doctor 2>/dev/null </dev/null)
      # Another code: it is too old to know that.
      if [ $? -le 1 ]; then value capkeep "$said"; return 0; fi
    fi
  done
  return 1
}

landlock() {
  found=$(python3 -I -c "$landlock_program" 2>/dev/null) || found=
  if [ -z "$found" ] && [ -r /sys/kernel/security/lsm ]; then
    found=$(grep -c landlock /sys/kernel/security/lsm)
  fi
  value landlock "$found"
}

# A program that nobody else finds, and that has no name any more when it is run.
marked_program() {
  folder=$(mktemp -d "$place/capkeep-doctor-XXXXXX") || return
  if cp /usr/bin/grep "$folder/program" && chmod 0755 "$folder/program"; then
    if command -v setcap >/dev/null; then try mark setcap cap_dac_read_search=ep "$folder/program"
    elif command -v python3 >/dev/null; then
      try mark python3 -I -c "$mark_program" "$folder/program" "$mark"
    fi
    exec 9<"$folder/program"
    rm -rf "$folder"
    as_nobody try marked
    exec 9<&-
  fi
  rm -rf "$folder"
}

can_try() { [ -x /usr/bin/grep ] && [ -z "$(needed missing)" ]; }

only_root() {
  if command -v unshare >/dev/null; then
    try "namespace mnt" unshare --mount true
    try "namespace uts" unshare --uts true
    try "namespace ipc" unshare --ipc true
    try "namespace pid" unshare --pid true
    try "namespace net" unshare --net true
    try mounts unshare --mount mount -t tmpfs -o nosuid,nodev tmpfs /tmp
  fi
  if can_try; then
    room try room
    own_room_as_nobody try own_room
  fi
  if [ -x /usr/bin/setpriv ] && [ -x /usr/bin/grep ]; then marked_program; fi
  if [ -x /usr/sbin/sshd ]; then try sshd /usr/sbin/sshd -T -C "$spec"; fi
}

main() {
  umask 077
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  LC_ALL=C
  export PATH LC_ALL
  value kernel "$(uname -r)"
  value uid "$(id -u)"
  own_doctor && return
  tell status </proc/self/status
  files /proc/1/status /proc/self/uid_map /proc/self/mountinfo
  landlock
  if [ -d "$booted" ]; then try systemd systemctl --version; fi
  needed missing | tell missing
  engines programs | tell engines
  settings each_setting
  pam each_folder
  files "$config"
  modules there | tell modules
  marked inheriting | tell inheriting
  value groups "$(id -nG "$login" 2>/dev/null)"
  if [ "$(id -u)" = 0 ]; then only_root; elif can_try; then own_room try own_room; fi
}
main
"""
