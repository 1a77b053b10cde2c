"""Rights that polkit gives the users of hooks: one file of rules, and in it nothing else.

polkit(8): rules are JavaScript, the first answer counts, and what no rule answers is decided by the
action's own defaults.
"""

import json
import os
from collections.abc import Iterator
from functools import partial
from typing import Final

from capkeep.errors import RefusedError
from capkeep.host.changes import Change, Removal, file_change
from capkeep.host.files import Owner
from capkeep.plan.model import Plan

FOLDER: Final = "/etc/polkit-1/rules.d"
_RULES: Final = """\
// Made by `capkeep apply` from the hooks of its configuration, and taken away with them.
polkit.addRule(function(action, subject) {{
    var rights = {rights};
    for (var i = 0; i < rights.length; i++) {{
        var fits = rights[i].user == subject.user && rights[i].action == action.id;
        for (var name in rights[i].details) {{
            fits = fits && action.lookup(name) == rights[i].details[name];
        }}
        if (fits) {{
            return polkit.Result.YES;
        }}
    }}
}});
"""


def rules(plan: Plan) -> str:
    """The file's text; empty where no hook has a right."""
    users = {room.hook: room.grant.user for room in plan.rooms if room.hook}
    rights = []
    for hook in plan.hooks:
        if hook.polkit:
            action, *details = hook.polkit.split(" ")
            pairs = dict(detail.split("=", 1) for detail in details)
            rights.append({"user": users[hook.name], "action": action, "details": pairs})
    return _RULES.format(rights=json.dumps(rights, indent=8)) if rights else ""


def changes(plan: Plan) -> Iterator[Change]:
    """The file, if there is anything to be said. Raises RefusedError where polkit is not installed."""
    text = rules(plan)
    if not text:
        return
    if not os.path.isdir(FOLDER):
        raise RefusedError(
            f"a hook is to have a right through polkit, which is not installed ({FOLDER})",
            hint="apt-get install polkitd, or take polkit = … away",
        )
    path = _path(plan)
    content = text.encode()
    yield file_change(f"rights {path}", path, content, owner=Owner(0, 0), mode=0o644)


def obsolete(plan: Plan) -> Iterator[Removal]:
    """The file of an earlier plan, where this one gives no right."""
    if not rules(plan):
        yield _away(plan)


def remove(plan: Plan) -> Iterator[Removal]:
    """The file, whatever is in it."""
    yield _away(plan)


def _away(plan: Plan) -> Removal:
    path = _path(plan)
    return Removal(f"file {path}", partial(os.path.lexists, path), partial(os.unlink, path))


def _path(plan: Plan) -> str:
    return f"{FOLDER}/50-{plan.name}.rules"
