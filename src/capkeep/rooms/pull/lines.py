"""Lines out of bytes, however small the pieces in which they come; pure."""

from capkeep.rooms.protocol import MAX_LINE, ProtocolError, whole_lines


class Lines:
    """What has been begun is kept, no more of it than one message may have."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole by now. Raises ProtocolError for one without an end."""
        whole = whole_lines(self._begun, data)
        if any(len(line) > MAX_LINE for line in (*whole, self._begun)):
            raise ProtocolError(f"a message is longer than {MAX_LINE} bytes")
        return whole
