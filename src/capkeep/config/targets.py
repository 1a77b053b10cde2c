"""A target's table, checked; and which targets a job's list names."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from capkeep.config import ssh, syntax
from capkeep.config.expand import EVERY, GROUP, TARGET, groups, in_secret, members
from capkeep.config.jobs import JobTable
from capkeep.config.mistakes import Collector, Place, nearest
from capkeep.config.model import TargetConfig
from capkeep.config.secrets import check_secret
from capkeep.config.sources import Owner
from capkeep.config.syntax import NAME_PATTERN
from capkeep.config.validate import Checked
from capkeep.values import SecretSource, ValueMistake

IDENTITY_HINT: Final = (
    'write [pull] identity = { file = "/etc/capkeep/secrets/pull" }: a private ssh key, made by'
    ' ssh-keygen -t ed25519 -N "" -f /etc/capkeep/secrets/pull'
)

SFTP_USER: Final = "capkeep-sftp"  # whom `capkeep enroll` makes where there is no capkeep

Table = Checked[syntax.Target]


class TargetChecker:
    """Turns one table after another into values."""

    def __init__(
        self, pull: Mapping[str, Checked[syntax.Pull]], owner: Owner, collector: Collector
    ) -> None:
        """`pull`: what is written for all targets."""
        self._pull = pull
        self._owner = owner
        self._collector = collector

    def check(self, name: str, table: Table, wrong: frozenset[str]) -> TargetConfig:
        """The target as a value. After mistakes it is not fit for use, only for further checks."""
        model = table.model
        host = model.host or name
        if "host" not in wrong:
            self._told(table.at("host"), partial(ssh.check_host, host))
        user = SFTP_USER if model.way == "sftp" and not table.gives("user") else model.user
        self._told(table.at("user"), partial(ssh.check_user, user))
        if table.gives("host_name"):
            self._told(table.at("host-name"), partial(ssh.check_name, model.host_name))
        self._groups(table)
        if model.way == "sftp" and self._owner.user_mode:
            said = "the mount that it takes cannot be made without root"
            hint = "take it away, or write it in the system's configuration"
            self._collector.mistake(table.at("way"), said, hint)
        jump = self._jump(name, table, wrong)
        for key, value in model.options.items():
            self._told(table.at("options", key), partial(ssh.check_option, key, value))
        return TargetConfig(
            name=name,
            host=host,
            host_name=model.host_name or name,
            user=user,
            host_keys=self._host_keys(name, table, wrong),
            identity=self._identity(name, table, wrong),
            port=model.port,
            jump=jump,
            jump_keys=self._keys(table, "jump-host-key", model.jump_host_key),
            options=tuple(model.options.items()),
            groups=tuple(dict.fromkeys(model.groups)),
            way=model.way,
        )

    def _told(self, place: Place, check: Callable[[], None]) -> None:
        """Make one check, and tell the mistake that it finds."""
        try:
            check()
        except ValueMistake as mistake:
            self._collector.mistake(place, mistake.problem, mistake.hint)

    def _groups(self, table: Table) -> None:
        for i, group in enumerate(table.model.groups):
            place = table.at("groups", i)
            if group == EVERY:
                said = f"every target is in the group {EVERY} by itself"
                self._collector.mistake(place, said, "take it away")
            elif not re.fullmatch(NAME_PATTERN, group):
                hint = f"use a-z, 0-9, - and _; a job that names the group writes {GROUP} before it"
                self._collector.mistake(place, f"{group!r} cannot be a group", hint)

    def _host_keys(self, name: str, table: Table, wrong: frozenset[str]) -> tuple[str, ...]:
        keys = table.model.host_key
        if not keys and "host-key" not in wrong:
            self._collector.mistake(
                table.at("host-key"),
                "the target's host key is not written, so anybody could stand in for it",
                f"capkeep target scan {name}, compare the fingerprint with that on the target, then"
                ' write host-key = "ssh-ed25519 AAAA…"',
            )
        return self._keys(table, "host-key", keys)

    def _keys(self, table: Table, key: str, texts: list[str]) -> tuple[str, ...]:
        """Host keys without comments: what is wrong is left out."""
        found: dict[str, None] = {}
        for i, text in enumerate(texts):
            place = table.at(key, i) if len(texts) > 1 else table.at(key)
            try:
                found[ssh.plain_key(ssh.parse_key(text))] = None
            except ValueMistake as mistake:
                self._collector.mistake(place, mistake.problem, mistake.hint)
        return tuple(found)

    def _identity(self, name: str, table: Table, wrong: frozenset[str]) -> SecretSource:
        """What to log in with: the target's own key, or that of all."""
        place, source = table.at("identity"), table.model.identity
        if not table.gives("identity"):
            pull = self._pull.get("identity")
            if pull is None:
                if "identity" not in wrong:
                    said = "there is no key to log in with"
                    self._collector.mistake(place, said, IDENTITY_HINT)
                return source
            place, source = pull.at("identity"), pull.model.identity
        source = in_secret(source, name)
        check_secret(source, place, self._owner, self._collector)
        return source

    def _jump(self, name: str, table: Table, wrong: frozenset[str]) -> str:
        """The host on the way; "" for none, and after a mistake."""
        model = table.model
        if not model.jump:
            if model.jump_host_key and "jump" not in wrong:
                said = "there is no host on the way whose key this could be"
                hint = 'write jump = "user@host", or take it away'
                self._collector.mistake(table.at("jump-host-key"), said, hint)
            return ""
        if not model.jump_host_key and "jump-host-key" not in wrong:
            self._collector.mistake(
                table.at("jump-host-key"),
                "the host key of the host on the way is not written, so anybody could stand in for it",
                f"capkeep target scan {name}, compare the fingerprint, then"
                ' write jump-host-key = "ssh-ed25519 AAAA…"',
            )
        try:
            return ssh.parse_jump(model.jump).text
        except ValueMistake as mistake:
            self._collector.mistake(table.at("jump"), mistake.problem, mistake.hint)
            return ""


def pulled_targets(
    table: JobTable, targets: Iterable[TargetConfig], collector: Collector, *, all_read: bool
) -> tuple[TargetConfig, ...]:
    """The targets of a job that names some; a mistake for each word that means none."""
    known = tuple(targets)
    words = table.model.targets
    if not words and table.own("targets"):
        hint = 'write targets = ["NAME"], or take it away if these are this host\'s files'
        collector.mistake(table.at("targets"), "the job names no target", hint)
    seen: set[str] = set()
    possible = {t.name for t in known} | {word for t in known for word in groups(t)}
    for word, place in table.entries("targets", words):
        if word in seen:
            collector.mistake(place, f"{word} is named twice", "name it once")
        elif word not in possible and all_read:
            collector.mistake(place, *_unknown(word, possible))
        seen.add(word)
    return members(words, known)


def _unknown(word: str, possible: set[str]) -> tuple[str, str]:
    if TARGET in word or not word.strip(GROUP):
        return f"{word!r} is no target", f'write its name, or "{GROUP}{EVERY}"'
    group = word.startswith(GROUP)
    guess = GROUP + word if GROUP + word in possible else nearest(word, possible)
    name = word.removeprefix(GROUP)
    define = f'write groups = ["{name}"] in a target' if group else f"define [targets.{name}]"
    said = f"there is no {'group' if group else 'target'} {name!r}"
    return said, f'did you mean "{guess}"?' if guess else define
