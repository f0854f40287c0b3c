"""A pool as runs of blocks by who has them; batches as runs of work. Pure."""

from collections.abc import Iterable, Mapping

from muxd.engine.trace import Span
from muxd.watch.schemas import AccountView, BlockRun, Kind, WorkView

GAP = 0.01  # seconds between two batches that are shown as one run


def pool_runs(accounts: Mapping[str, AccountView], free: int) -> list[BlockRun]:
    """Each model's blocks, split at its guarantee and at its quota, what it has cached, then what is free."""
    runs = [
        BlockRun(model, kind, blocks)
        for model, account in accounts.items()
        for kind, blocks in _parts(account)
        if blocks
    ]
    return [*runs, BlockRun("", "free", free)] if free else runs


def _parts(account: AccountView) -> tuple[tuple[Kind, int], ...]:
    within = min(account.held, account.quota)
    guaranteed = min(within, account.guarantee)
    return (
        ("guaranteed", guaranteed),
        ("quota", within - guaranteed),
        ("borrowed", account.held - within),
        ("cached", account.cached),
    )


def work_runs(device: str, spans: Iterable[Span], most: int) -> list[WorkView]:
    """Batches that are over, those of one model and phase together where hardly a gap is between them: at
    most ``most`` runs, by larger gaps where there would be more. By their ends."""
    spans, gap = list(spans), GAP
    runs = _joined(device, spans, gap)
    while len(runs) > most:
        gap *= 2
        runs = _joined(device, spans, gap)
        if gap > 1000:  # as few as there are models and phases
            break
    return runs[-most:]


def _joined(device: str, spans: Iterable[Span], gap: float) -> list[WorkView]:
    runs: list[WorkView] = []
    last: dict[tuple[str, str], int] = {}  # where each model's newest run of a phase is in ``runs``
    for span in spans:
        if span.end is None:
            continue
        key = span.model, span.phase
        index = last.get(key)
        if index is not None and span.start - runs[index].end <= gap and not span.lost:
            runs[index] = _longer(runs[index], span, span.end)
        else:
            last[key] = len(runs)
            runs.append(_alone(device, span, span.end))
    return sorted(runs, key=lambda run: run.end)


def _alone(device: str, span: Span, end: float) -> WorkView:
    return WorkView(
        device, span.model, span.phase, span.start, end, span.share, span.sequences, span.tokens, 1, span.lost
    )


def _longer(run: WorkView, span: Span, end: float) -> WorkView:
    return WorkView(
        run.device, run.model, run.phase, min(run.begin, span.start), max(run.end, end),
        max(run.share, span.share), max(run.sequences, span.sequences), run.tokens + span.tokens,
        run.batches + 1, run.lost,
    )  # fmt: skip
