"""How much longer a whole `capkeep run` takes than the same engine command run by hand.

A small unchanged job (1,000 files, 10 MB) on a local repository; the newest restic.
`extra_ms_direct`: median wall time of `capkeep run` less that of `restic backup`, milliseconds,
where `capkeep doors` start the rooms; `extra_ms_systemd`: where systemd does, on a booted Debian 13.
By hand the repository has a key as restic makes it; `same_key_extra_ms`: it has capkeep's quick one too.
Between two calls the doors get a moment, as between any two commands of a person or a timer.
"""

import time
from pathlib import Path

from bench import booted
from bench.host import alternate, fill, installed, result, say, scratch
from tests.engines import restic_programs

ROUNDS = 15
MOMENT = 2.0  # seconds


def main() -> None:
    """Measure and print."""
    restic = list(restic_programs().values())[-1]
    with scratch() as place:
        source = place / "source"
        fill(source, 1000, 10_000)
        with installed(place / "capkeep", source, restic) as host:
            host.capkeep("init")
            beside, alike = place / "by-hand", place / "same-key"
            host.twin(beside)
            host.twin(alike, same_key=True)

            def ours() -> None:
                host.capkeep("run", "bench")

            def by_hand(repository: Path = beside) -> None:
                host.by_hand("backup", "--json", str(source), repository=repository)

            ours()
            by_hand()
            by_hand(alike)
            say(f"{ROUNDS} rounds")
            capkeep_ms, restic_ms, same_ms = alternate(
                ROUNDS, ours, by_hand, lambda: by_hand(alike), before=lambda: time.sleep(MOMENT)
            )
    booted_ms, booted_restic_ms = booted.run_ms(ROUNDS, MOMENT)
    result(
        extra_ms_direct=capkeep_ms - restic_ms,
        capkeep_ms=capkeep_ms,
        restic_ms=restic_ms,
        same_key_extra_ms=capkeep_ms - same_ms,
        extra_ms_systemd=booted_ms - booted_restic_ms,
        booted_capkeep_ms=booted_ms,
        booted_restic_ms=booted_restic_ms,
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
