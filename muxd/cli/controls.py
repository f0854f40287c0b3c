"""``muxctl quota`` and ``muxctl policy``: show what steers a running muxd, and change it."""

from typing import Annotated

import typer

from muxd.admin.schemas import PinModel, PolicyState, QuotaChange, QuotaInfo
from muxd.cli.asking import PROGRAM, Json, Socket, client_at, show
from muxd.cli.failing import fail, sentences
from muxd.cli.tables import render, size

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model. Without one: all.")]
_Pinned = Annotated[str, typer.Argument(metavar="MODEL", help="The model.")]
_Size = "A size or a part of the pool: 64M, 10%."


def quota(
    model: _Model = "",
    min: Annotated[str | None, typer.Option(help=f"Memory it is guaranteed. {_Size}")] = None,
    max: Annotated[str | None, typer.Option(help=f"Memory it may take at most. {_Size}")] = None,
    weight: Annotated[float | None, typer.Option(help="Its part of what nobody is guaranteed.")] = None,
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Show what each model may hold of the pool and holds; change a model's quota. Takes effect at once."""
    with sentences(PROGRAM):
        client = client_at(socket)
        change = any(value is not None for value in (min, max, weight))
        if change and not model:
            fail(PROGRAM, "name the model whose quota is to change: muxctl quota MODEL --min 64M")
        rows = client.set_quota(QuotaChange(model, min, max, weight)) if change else client.quota()
        chosen = [row for row in rows if model in ("", row.model)]
        if not chosen and model:
            fail(PROGRAM, f"no model {model!r}; there are: {', '.join(row.model for row in rows) or 'none'}")
        show(client, chosen, json, quota_table(chosen))


def pin(model: _Pinned, socket: Socket = "", json: Json = False) -> None:
    """Have a model never sleep by the rules: `resident = "always"`, until muxd loads it anew."""
    _pin(model, True, socket, json, "never sleeps by itself")


def unpin(model: _Pinned, socket: Socket = "", json: Json = False) -> None:
    """Let a model sleep again where its place is needed."""
    _pin(model, False, socket, json, "may sleep where its place is needed")


def _pin(model: str, pinned: bool, socket: str, json: bool, now: str) -> None:
    with sentences(PROGRAM):
        client = client_at(socket)
        row = client.pin(PinModel(model, pinned))
        later = (
            f", once `{PROGRAM} wake` or a request has woken it" if row.state == "asleep" and pinned else ""
        )
        show(client, row, json, f"{model} {now}{later}.")


def policy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The policy to schedule by from now on.")] = "",
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Show who decides what runs next; change it while no request is served."""
    with sentences(PROGRAM):
        client = client_at(socket)
        state = client.set_policy(name) if name else client.policy()
        show(client, state, json, _policies(state))


def quota_table(rows: list[QuotaInfo]) -> str:
    """Bytes, and percent of the pool of its device."""
    several = any(row.device for row in rows)
    headers = ("MODEL", *(["DEVICE"] if several else []), "MIN", "QUOTA", "MAX", "WEIGHT", "USED", "CACHED",
               "BORROWED")  # fmt: skip
    return render(headers, [_quota(row, several) for row in rows])


def _quota(row: QuotaInfo, several: bool) -> list[str]:
    def part(count: int) -> str:
        return f"{size(count)} {100 * count / row.pool_bytes:.0f}%" if count else "0"

    bounds = map(part, (row.min_bytes, row.quota_bytes, row.max_bytes))
    held = map(part, (row.used_bytes, row.cached_bytes, row.borrowed_bytes))
    return [row.model, *([row.device] if several else []), *bounds, f"{row.weight:g}", *held]


def _policies(state: PolicyState) -> str:
    others = ", ".join(name for name in state.policies if name != state.policy)
    return f"{state.policy} (others: {others})"
