"""Lines out of bytes, however small the pieces in which they come; pure."""

from capkeep.rooms.protocol import MAX_LINE, ProtocolError


class Lines:
    """What has been begun is kept, no more of it than one message may have."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole by now. Raises ProtocolError for one without an end."""
        first, found, rest = data.partition(b"\n")
        self._begun += first
        if len(self._begun) > MAX_LINE:
            raise ProtocolError(f"a message is longer than {MAX_LINE} bytes")
        if not found:
            return []
        *lines, begun = rest.split(b"\n")
        whole = [bytes(self._begun), *lines]
        self._begun = bytearray(begun)
        return whole
