"""Members get their own files back where systemd starts the rooms."""

from tests.lab.machine import Machine
from tests.lab.scenes import applied

MEMBERS = """
[host]
members-restore = true
"""


def test_a_member_gets_back_what_he_could_read_and_no_more(machine: Machine) -> None:
    for name, uid in (("ann", 2001), ("bob", 70002)):
        machine.ok("useradd", "--create-home", f"--uid={uid}", "--shell=/bin/sh", name)
        machine.ok("chmod", "700", f"/home/{name}")
        machine.ok("sh", "-c", f"echo {name}s >note; chmod 644 note", user=name)
    machine.ok("groupadd", "--gid=70100", "team")
    machine.ok("usermod", "-aG", "team", "bob")
    machine.ok("sh", "-c", "install -d -m 2770 -g team /srv/data/team; echo ours >/srv/data/team/plan;"
               " chmod 640 /srv/data/team/plan; chmod 750 /srv/data/team")  # fmt: skip
    applied(machine, MEMBERS)
    for name in ("ann", "bob"):
        machine.ok("usermod", "-aG", "capkeep", name)
    machine.ok("capkeep", "run")
    machine.ok("rm", "/home/ann/note", "/home/bob/note", "/srv/data/team/plan")
    for name, other in (("ann", "bob"), ("bob", "ann")):
        machine.ok("capkeep", "restore", "latest", f"/home/{name}/note", "--in-place", user=name)
        assert machine.ok("stat", "-c", "%U %a", f"/home/{name}/note") == f"{name} 644\n"
        refused = machine.run(
            "capkeep",
            "restore",
            "latest",
            f"/home/{other}/note",
            "--to",
            f"/home/{name}/b",
            user=name,
        )
        assert refused.code == 4, refused
    # By a group whose number is large, and without it.
    plan = ("capkeep", "restore", "latest", "/srv/data/team/plan", "--to")
    machine.ok(*plan, "/home/bob/back", user="bob")
    assert machine.read("/home/bob/back/srv/data/team/plan") == "ours\n"
    assert machine.run(*plan, "/home/ann/back", user="ann").code == 4
    assert machine.run("capkeep", "ls", "latest", user="daemon").code == 4
    assert machine.ok("systemctl", "--failed", "--quiet") == ""
    audit = machine.run("capkeep", "audit")
    assert audit.code == 0, audit
    assert "members-restore" in audit.out
    # Root's way, in place: owners and capabilities, and what was there is in a snapshot before.
    machine.ok("sh", "-c", "cp /bin/true /srv/data/tool; chown 70002:70100 /srv/data/tool;"
               " chmod 4750 /srv/data/tool; setcap cap_net_raw+ep /srv/data/tool || true")  # fmt: skip
    machine.ok("capkeep", "run")
    before = machine.ok("sh", "-c", "stat -c '%u %g %a %s' /srv/data/tool; getfattr -d -m- /srv/data/tool || true")  # fmt: skip
    machine.ok("sh", "-c", "rm /srv/data/tool; echo other >/srv/data/tool")
    done = machine.ok("capkeep", "restore", "latest", "/srv/data/tool", "--in-place", "--overwrite")
    assert "verified" in done
    after = machine.ok("sh", "-c", "stat -c '%u %g %a %s' /srv/data/tool; getfattr -d -m- /srv/data/tool || true")  # fmt: skip
    assert after == before
    assert "other" in machine.ok("sh", "-c", "capkeep restore latest /srv/data/tool --to /root/saved"
                                 " >/dev/null && cat /root/saved/srv/data/tool")  # fmt: skip
