"""What a reader whose repository is another host's gets from its caller, with the one request.

Its caller is who is let in by its door: the answerer, which passes on what a server says. The server
decides what becomes of the snapshot (its host, its tags, the password it is sealed with), and
nothing of what is read: that stands in this host's own plan.
"""

import os
import socket

from capkeep.plan.model import Brief, Job, Resources
from capkeep.rooms.handover import is_handover, receive
from capkeep.rooms.protocol import Message, ProtocolError
from capkeep.rooms.pull.asked import request_of

PASSWORD = "password"  # noqa: S105 the name of the secret


def receive_given(caller: socket.socket) -> tuple[bytes, socket.socket | None]:
    """The beginning of a request, and the wire if one comes with it. Raises ProtocolError, OSError."""
    data, fds, whole = receive(caller, 1 << 16, 1)
    if whole and not fds:
        return data, None
    try:
        if not whole or len(fds) != 1 or not is_handover(fds[0]):
            raise ProtocolError("a reader of a repository that is pulled is given its wire")
        return data, socket.socket(fileno=fds.pop())
    finally:
        for fd in fds:
            os.close(fd)


def brief_of(brief: Brief, said: Message) -> Brief:
    """The brief with what the request says. Raises ProtocolError for what it may not say."""
    request = request_of(said)
    password = request.get(PASSWORD)
    if isinstance(password, str) and PASSWORD not in dict(brief.secrets):
        brief = brief._replace(secrets=(*brief.secrets, (PASSWORD, password)))
    return brief._replace(job=_job_of(brief.job, request)) if brief.job else brief


def _job_of(job: Job, request: Message) -> Job:
    host, tags, rates = (request.get(name) for name in ("host", "tags", "rates"))
    if isinstance(host, str):
        job = job._replace(host=host)
    if isinstance(tags, list):
        job = job._replace(tags=tuple(map(str, tags)))
    if isinstance(rates, dict):
        job = job._replace(resources=_slower(job.resources, rates))
    return job


def _slower(ours: Resources, theirs: dict[str, int]) -> Resources:
    """Each pace that is asked for, unless this host's own is slower; 0 is none."""
    paces = {
        "upload_bytes": (ours.upload_bytes, theirs.get("upload", 0)),
        "download_bytes": (ours.download_bytes, theirs.get("download", 0)),
    }
    return ours._replace(
        **{name: min(filter(None, pair), default=0) for name, pair in paces.items()}
    )
