"""The only place that exits: an error becomes a sentence, a hint and an exit code."""

import os
import select
import sys

from capkeep.errors import EXIT_CODES, EXIT_FAILED, CapkeepError, Failure, StepError
from capkeep.kernel.leave import leave

TYPE_CHECKING = False  # `--version` starts before typing has loaded
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Entry point of the `capkeep` command."""
    _open_standard_streams()
    try:
        if sys.argv[1:2] == ["run"]:
            from capkeep.cli.early import knock

            knock(sys.argv[1:])
        # Only now: the runner starts while the command line is loaded and read.
        from capkeep.cli.main import main as run_command

        code = run_command()
        sys.stdout.flush()
    except CapkeepError as error:
        print(f"capkeep: {error}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        if isinstance(error, StepError) and error.engine_words:
            print("  the engine said:", file=sys.stderr)
            for line in error.engine_words.splitlines():
                print(f"    {line}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_CODES[Failure.STOPPED]
    except BrokenPipeError:
        if not _nobody_reads():
            raise  # it is about something else, and must not end in silence
        # Whoever read our output has gone; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    except OSError as error:
        print(f"capkeep: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the rest of our words cannot fail
        code = EXIT_FAILED
    leave(code)


def _open_standard_streams() -> None:
    """Whoever closed one of them would have the next file that is opened take its place."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for our whole life
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _nobody_reads() -> bool:
    """Whether whoever read our standard output is gone (POLLERR, poll(2))."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    main()
