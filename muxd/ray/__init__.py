"""Several hosts, each with its muxd, behind one address: an application for Ray Serve.

``serve run muxd.ray:app plan=FOLDER``. Needs the extra: ``pip install "muxd[ray]"``.
"""

from typing import TYPE_CHECKING, Any

from muxd.errors import ConfigError

if TYPE_CHECKING:
    from ray.serve import Application


def app(args: dict[str, Any]) -> "Application":
    """The application; ``args`` are ``settings.Arguments``. Raises ConfigError."""
    try:
        from muxd.ray.application import build
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "starlette"):
            raise
        raise ConfigError('Ray Serve is not installed: pip install "muxd[ray]"') from None
    return build(args)
