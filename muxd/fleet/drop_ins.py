"""Models that stay over a restart though the configuration does not name them: a drop-in file each.

``muxctl load --keep`` writes one beside the configuration, ``muxctl unload --keep`` takes it away;
``config_load`` reads them. A file is complete whenever it has its name.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from muxd import toml, whole
from muxd.config import ModelConfig
from muxd.config_load import drop_in_folder, read_toml
from muxd.errors import BadRequest

_HEAD = "# Written by `muxctl load --keep`; `muxctl unload --keep` takes it away.\n"


@dataclass(frozen=True)
class DropIns:
    """Of the configuration ``file``. ``since``: what was kept (None: dropped) since the files were read."""

    file: Path
    since: dict[str, ModelConfig | None] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return drop_in_folder(self.file)

    def path(self, model: str) -> Path:
        """Of the model's own drop-in: any name is one file that is not hidden."""
        name = quote(model, safe=" ")
        return self.folder / (f"{'%2E' + name[1:] if name.startswith('.') else name}.toml")

    @asynccontextmanager
    async def kept(self, model: ModelConfig) -> AsyncIterator[None]:
        """The model's file is there once the body has ended well, and as it was if it has not.

        Raises BadRequest, the body not begun, where it cannot be written.
        """
        draft = await asyncio.to_thread(self._draft, model)
        try:
            yield
            await asyncio.to_thread(self._publish, draft, self.path(model.name))
            self.since[model.name] = model
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    @asynccontextmanager
    async def dropped(self, model: str) -> AsyncIterator[None]:
        """The model's file is gone once the body has ended well. Raises BadRequest, the body not begun,
        where it has none or it cannot be taken away."""
        path = self.path(model)
        if not await asyncio.to_thread(path.is_file):
            raise BadRequest(
                f"{model} is not kept: there is no {path}; where {self.file} names it, take it out there"
            )
        if not await asyncio.to_thread(os.access, self.folder, os.W_OK):
            raise self._refusal("no permission")
        yield
        try:
            await asyncio.to_thread(path.unlink, missing_ok=True)
            self.since[model] = None
        except OSError as error:
            raise self._refusal(error.strerror) from None

    def _draft(self, model: ModelConfig) -> Path:
        """Written beside its place, under a name that nobody reads. One load runs at a time."""
        if model.name in _names(self.file):
            raise BadRequest(f"{model.name} is in {self.file}, so it stays over a restart by that")
        path, text = self.path(model.name), _HEAD + table(model)
        try:
            return whole.draft(path, text.encode())
        except OSError as error:
            raise self._refusal(error.strerror) from None

    def _publish(self, draft: Path, path: Path) -> None:
        try:
            whole.publish(draft, path)
        except OSError as error:
            raise self._refusal(error.strerror) from None

    def _refusal(self, why: str | None) -> BadRequest:
        return BadRequest(
            f"{self.folder}: models cannot be kept there ({why or 'it cannot be written'}): make the folder "
            f"and let muxd's user write into it; under systemd also ReadWritePaths={self.folder} in the "
            "unit's [Service] (systemctl edit muxd)"
        )


def _names(file: Path) -> set[object]:
    """Of the models in the file itself. Raises ConfigError."""
    models = read_toml(file).get("model", [])
    return {model.get("name") for model in models if isinstance(model, dict)}


def table(model: ModelConfig) -> str:
    """``[[model]]`` with what differs from the defaults. Raises BadRequest for what TOML has no word for."""
    plain, defaults = _plain(model), _plain(ModelConfig("", ""))
    given = {key: value for key, value in plain.items() if value != defaults[key]}
    return "[[model]]\n" + "".join(f"{key} = {_value(value, key)}\n" for key, value in given.items())


def _plain(model: ModelConfig) -> dict[str, Any]:
    """Of [model.sampling] what is not given is None, and is left out."""
    found: dict[str, Any] = msgspec.to_builtins(model)
    sampling = {key: value for key, value in found["sampling"].items() if value is not None}
    return found | {"sampling": sampling}


def _value(value: Any, key: str) -> str:
    try:
        return toml.text(value)
    except TypeError as error:
        raise BadRequest(f"{key}: {error}, so the model cannot be kept", param=key) from None
