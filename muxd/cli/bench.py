"""``muxctl bench``: replay a workload against a running muxd and report as `muxctl simulate` does."""

from typing import TYPE_CHECKING, Annotated

import typer

from muxd.cli.asking import Socket
from muxd.cli.failing import sentences
from muxd.cli.progress import counting
from muxd.cli.simulate import CostFile, HtmlFile, JsonFile, PlotFile, SharedPrefix, WorkloadFile

if TYPE_CHECKING:
    from muxd.cost.table import CostTable
    from muxd.sim.report import Report
    from muxd.sim.workload import Workload

_PROGRAM = "muxctl"


def bench(
    workload: WorkloadFile,
    url: Annotated[str, typer.Option(help="Default: where the local muxd listens.", metavar="URL")] = "",
    cost: CostFile = None,
    like: Annotated[
        list[str] | None, typer.Option(help="MODEL=PROFILED: SLO base of a model that was not measured.")
    ] = None,
    shared_prefix: SharedPrefix = 0,
    json: JsonFile = None,
    png: PlotFile = None,
    html: HtmlFile = None,
    socket: Socket = "",
) -> None:
    """Replay a workload against a running muxd: every request at its time, streamed. SLOs need a profile."""
    from muxd.admin.client import AdminClient, socket_path
    from muxd.cli.reports import deliver
    from muxd.cli.simulate import cost_table
    from muxd.config import home
    from muxd.errors import DaemonUnreachable
    from muxd.sim.workload import read

    with sentences(_PROGRAM):
        requests = read(workload)
        profile = cost or home() / "cost.json"
        table = cost_table(profile, None, like or []) if cost or profile.exists() else None
        try:
            status = AdminClient(socket_path(socket)).status()
            policy = status.policy if url.rstrip("/") in ("", status.address) else "unknown"
            url = url or status.address
        except DaemonUnreachable:
            if not url:
                raise
            policy = "unknown"
        deliver(replay(requests, url, policy, table, shared_prefix), json, png, html)


def replay(
    workload: "Workload", url: str, policy: str, cost: "CostTable | None" = None, shared_prefix: int = 0
) -> "Report":
    """One run, with a progress bar on standard error where that is a terminal."""
    import asyncio

    import uvloop

    from muxd.sim.replay import Replay
    from muxd.sim.report import make_report, quantiles

    with counting(f"Asking {url}", len(workload.items)) as advance:
        run = Replay(workload, url, shared_prefix=shared_prefix, progress=advance)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            records = runner.run(run.run())
    late = quantiles(run.lateness)
    assert late is not None  # a workload has requests
    notes = {"lateness": f"the generator was {1000 * late.p50:.1f}ms late, p99 {1000 * late.p99:.1f}ms"}
    return make_report(records, kind="live", policy=policy, cost=cost, notes=notes)
