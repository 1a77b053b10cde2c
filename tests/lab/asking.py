"""Asks a target as a server does, for whatever the last argument says: words that no server would use.

`python3 asking.py KEY COMMAND REQUEST`: the ssh login's key, what ssh is told to start, and JSON for
the conversation. Prints what the target answers there, until it leaves, has given a result or
told of a file.
"""

import struct
import subprocess
import sys

HELLO = b"capkeep pull 1\n"
DATA, TALK = 2, 0
SSH = ("timeout", "20", "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
       "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")  # fmt: skip


def main() -> None:
    _, key, command, request = sys.argv
    argv = [*SSH, "-i", key, "capkeep-answerer@192.0.2.2", command]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as ssh:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        line = request.encode() + b"\n"
        ssh.stdin.write(HELLO + struct.pack(">BHI", DATA, TALK, len(line)) + line)
        ssh.stdin.flush()
        ssh.stdout.read(len(HELLO))
        said = b""
        while (head := ssh.stdout.read(7)) and len(head) == 7:
            kind, channel, length = struct.unpack(">BHI", head)
            payload = ssh.stdout.read(length)
            if (kind, channel) == (DATA, TALK):
                said += payload
            if (b'"result"' in said or b'"live"' in said) and said.endswith(b"\n"):
                break
        ssh.stdin.close()
        sys.stdout.buffer.write(said)


if __name__ == "__main__":
    main()
