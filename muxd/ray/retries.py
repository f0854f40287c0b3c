"""What is tried again at another host: only what has sent no token, and a few times only. Pure."""

TRIES = 3  # hosts that one request is sent to after it may have been computed: it might be what ends them

_REFUSED = (429, 503)  # before anything was computed


def refused(status: int) -> bool:
    """The host does not take it now; another may."""
    return status in _REFUSED


def may_retry(lost: int, *, told: bool) -> bool:
    """After the host was lost in the midst of it. ``lost``: hosts that were, with this one. ``told``: the
    client has something of the answer, which another one would not go on with."""
    return not told and lost < TRIES


def says_nothing(chunk: bytes, content_type: str) -> bool:
    """Only signs of life, which readers skip: comments of an event stream, whitespace before lines of
    JSON."""
    if content_type.startswith("text/event-stream"):
        return all(line.startswith(b":") or not line.strip() for line in chunk.split(b"\n"))
    return not chunk.strip()
