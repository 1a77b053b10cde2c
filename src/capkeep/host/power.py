"""Whether this is a moment for work that can wait: on mains power, over a network that is not metered."""

import json
import os
from typing import Final

from capkeep.host.commands import run_command

SUPPLIES: Final = "/sys/class/power_supply"
BUSCTL: Final = "/usr/bin/busctl"
SECONDS: Final = 10
_NETWORK: Final = "org.freedesktop.NetworkManager"
_METERED: Final = (1, 3)  # yes, and "probably" (NMMetered of NetworkManager's D-Bus interface)


def on_battery(supplies: str = SUPPLIES) -> bool:
    """Whether the machine lives on its battery (sysfs-class-power of the kernel, ABI/testing).

    Where something says that it is the mains, that counts; else a battery that becomes emptier. Of
    a machine that has neither nothing is known, and it is taken to be on mains power.
    """
    mains, discharging = [], False
    for name in sorted(os.listdir(supplies)) if os.path.isdir(supplies) else ():
        kind = _read(f"{supplies}/{name}/type")
        if kind in ("Mains", "USB"):
            mains.append(_read(f"{supplies}/{name}/online") == "1")
        elif kind == "Battery" and _read(f"{supplies}/{name}/scope") != "Device":
            discharging = discharging or _read(f"{supplies}/{name}/status") == "Discharging"
    if any(mains):
        return False
    return discharging


def on_metered() -> bool:
    """Whether NetworkManager takes the network for one that is paid for by what is transferred.

    Where there is no NetworkManager nobody knows, and it is not.
    """
    if not os.access(BUSCTL, os.X_OK):
        return False
    try:
        code, said = run_command(
            [BUSCTL, "--system", "--json=short", "--auto-start=no", "get-property", _NETWORK,
             f"/{_NETWORK.replace('.', '/')}", _NETWORK, "Metered"],
            timeout=SECONDS,
        )  # fmt: skip
    except (OSError, TimeoutError):
        return False
    return code == 0 and is_metered(said)


def is_metered(said: str) -> bool:
    """What busctl says of the property `Metered`."""
    try:
        return json.loads(said)["data"] in _METERED
    except (ValueError, KeyError, TypeError):
        return False


def obstacle(*, battery_too: bool, metered_too: bool) -> str:
    """What speaks against a scheduled run just now; "" for nothing."""
    if not battery_too and on_battery():
        return "on battery"
    if not metered_too and on_metered():
        return "over a metered network"
    return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
