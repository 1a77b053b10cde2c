"""What a job may take of the machine and of the network."""

from collections.abc import Callable
from typing import Final

from capkeep.config.mistakes import Collector, Place
from capkeep.config.model import ResourcesConfig
from capkeep.config.syntax import JobDefaults
from capkeep.values import format_rate, format_size

LEAST_MEMORY: Final = 128 << 20  # an engine holds its index and some packs in memory
KERNELS_OWN: Final = 4  # the priority within best-effort that everybody has (ioprio_set(2))
LEAST_RATE: Final = 64 << 10  # bytes a second: slower than that, engines take a place for dead


def check_resources(
    model: JobDefaults,
    at: Callable[[str], Place],
    written: Callable[[str], bool],
    collector: Collector,
) -> ResourcesConfig:
    """The settings as a value; a mistake for each that nothing could work with."""
    if written("memory_limit") and model.memory_limit < LEAST_MEMORY:
        least = format_size(LEAST_MEMORY)
        collector.mistake(
            at("memory_limit"), "no engine works with so little memory", f'write "{least}" or more'
        )
    rates = {"upload_limit": model.upload_limit, "download_limit": model.download_limit}
    for field, rate in rates.items():
        if written(field) and rate < LEAST_RATE:
            collector.mistake(
                at(field),
                "is so slow that engines would take the repository for dead",
                f'write "{format_rate(LEAST_RATE)}" or more: bytes, not bits',
            )
    unlike = written("io_priority") and model.io_priority != KERNELS_OWN
    if unlike and model.io_class != "best-effort":
        collector.remark(
            at("io_priority"), "is for the class best-effort", 'write io-class = "best-effort"'
        )
    if written("retry_wait") and not model.retry_wait:
        collector.mistake(at("retry_wait"), "would try again at once", 'write "30s"')
    return ResourcesConfig(
        nice=model.nice,
        io_class=model.io_class,
        io_priority=model.io_priority,
        cpu_percent=model.cpu_limit,
        memory_bytes=model.memory_limit,
        upload_bytes=model.upload_limit,
        download_bytes=model.download_limit,
        lock_wait_seconds=model.lock_wait,
        retries=model.retries,
        retry_wait_seconds=model.retry_wait,
    )
