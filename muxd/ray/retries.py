"""What is tried again at another host: only what has sent no token, and a few times only. Pure."""

TRIES = 3  # hosts that one request is sent to after it may have been computed: it might be what ends them

NEWS = 1.0  # seconds: until a model that has left a host is known to be at another, four reports

_REFUSED = (429, 503)  # before anything was computed


def refused(status: int) -> bool:
    """The host does not take it now; another may."""
    return status in _REFUSED


def has_left(status: int, *, comes: bool, there: bool) -> bool:
    """The host says that waiting does not bring the model, and by its last report it was ``there``: the
    report is of before. ``comes``: it says when to try again."""
    return status == 503 and there and not comes


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
