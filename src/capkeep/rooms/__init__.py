"""The programs that run inside rooms, and the wire protocol."""
