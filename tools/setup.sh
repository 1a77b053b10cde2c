# Sourced by ./test and ./demo: what they need of the machine, installed only where it is missing.

say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# need_packages NAME… : install Debian packages that are not there; start no daemon of theirs.
need_packages() {
  local name missing=() policy=/usr/sbin/policy-rc.d ours=
  for name in "$@"; do
    [ "$(dpkg-query -Wf '${db:Status-Status}' "$name" 2>/dev/null || true)" = installed ] || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; ours=yes
  fi
  local code=0
  timeout --foreground 300 apt-get -qq -o Acquire::Retries=3 update </dev/null >&2 || code=$?
  [ $code -ne 0 ] || DEBIAN_FRONTEND=noninteractive timeout --foreground 900 apt-get -qq -y \
    -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 --no-install-recommends install "${missing[@]}" </dev/null >&2 || code=$?
  [ -z "$ours" ] || rm -f $policy
  [ $code -eq 0 ] || die "apt-get could not install ${missing[*]}"
}

# make_venv DIR LOCK : a virtual environment of the system's own Python (never one below somebody's
# home, which a room's user could not execute) that holds exactly what LOCK names, and this checkout.
make_venv() {
  local venv=$1 lock=$2 want have source
  umask 022
  mkdir -p "$(dirname "$venv")"
  exec 9>"$venv.lock"
  flock -w 900 9 || die "another set-up of $venv is under way"
  want=$(cat "$lock" "$(readlink -f /usr/bin/python3)" | sha256sum)
  have=$(cat "$venv/lock.sum" 2>/dev/null || true)
  if [ "$want" != "$have" ]; then
    say "installing locked Python packages in $venv"
    rm -rf "$venv"
    /usr/bin/python3 -m venv "$venv"
    "$venv/bin/pip" install -qq --disable-pip-version-check --require-hashes -r "$lock" >&2
    printf '%s\n' "$want" >"$venv/lock.sum"
  fi
  source=$(find src pyproject.toml README.md LICENSE -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum)
  have=$(cat "$venv/source.sum" 2>/dev/null || true)
  if [ "$source" != "$have" ]; then
    say "building capkeep and installing it in $venv"
    rm -f "$venv/source.sum"
    "$venv/bin/pip" install -qq --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall . >&2
    printf '%s\n' "$source" >"$venv/source.sum"
  fi
  exec 9>&-
}
