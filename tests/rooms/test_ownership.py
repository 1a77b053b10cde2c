"""The user namespace of a prover, where the kernel gives none."""

import subprocess
import sys

NONE = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
TRY = """
import os
from capkeep.kernel.ownership import Namespace
try:
    Namespace()
except OSError as error:
    print(error.strerror)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nobody is left")
"""


def test_a_kernel_that_gives_no_user_namespace_keeps_nobody_waiting() -> None:
    argv = ("unshare", "--user", "--map-root-user", "sh", "-c", NONE, sys.executable, TRY)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "No space left on device\nnobody is left\n", done
