"""Times as clients of Anthropic and Ollama read them."""

from datetime import datetime


def zulu(at: datetime) -> str:
    """ISO 8601 of a time in UTC, with Z."""
    return at.isoformat().replace("+00:00", "Z")
