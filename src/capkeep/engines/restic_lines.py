"""The words of restic's messages."""

from capkeep.engines.lines import as_text


def message_of(message: dict[str, object]) -> str:
    """The words of an error in any of its forms."""
    error = message.get("error")
    inner = error.get("message") if isinstance(error, dict) else error
    return as_text(message.get("message")) or as_text(inner)
