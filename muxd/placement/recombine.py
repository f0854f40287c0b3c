"""The best layout made of sets that walks have met, whichever walk met them: a set partition by HiGHS.

    maximise sum of worth(c) · x(c)   with every model in exactly one chosen set and the devices not exceeded

A walk changes two meshes at a time and forgets what it leaves: good sets of one walk never meet those of
another. Solved to a relative gap and a number of nodes, not to a time, on one thread:
the same sets give the same layout.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import highspy
import numpy as np

from muxd.placement.appraiser import canonical
from muxd.placement.meshes import packed
from muxd.placement.problem import Layout, Mesh
from muxd.placement.search import Enough
from muxd.placement.sets import Sets

_GAP, _NODES = 1e-3, 200
_QUIET = {"output_flag": False, "threads": 1}


def recombined(
    sets: Sets,
    visited: Iterable[tuple[int, tuple[int, ...]]],
    advance: Callable[[int], None] = lambda _: None,
) -> Layout | None:
    """``visited``: devices and models of every set to choose from. None where they do not hold all models.
    ``advance(0)`` now and then: what it raises ends the solver, with what it has.

    Also None for hosts whose devices are not a power of two when the meshes found do not pack onto them.
    """
    problem = sets.appraiser.problem
    worths = [(*key, sets.worth(*key)) for key in visited if key[1]]
    known = [(gpus, models, worth) for gpus, models, worth in worths if worth is not None]
    if not known:
        return None
    chosen = _solved([(gpus, models, worth[0]) for gpus, models, worth in known], sets, advance)
    hosts = packed([known[i][0] for i in chosen], problem.gpus) if chosen else None
    if hosts is None:
        return None
    return canonical(
        Mesh(host, known[i][0], known[i][1], known[i][2][1]) for host, i in zip(hosts, chosen, strict=True)
    )


def _solved(
    columns: list[tuple[int, tuple[int, ...], float]], sets: Sets, advance: Callable[[int], None]
) -> list[int]:
    """The chosen columns' numbers, empty where there is no solution."""
    solver = _quiet_solver()
    for option, value in {**_QUIET, "mip_rel_gap": _GAP, "mip_max_nodes": _NODES}.items():
        solver.setOptionValue(option, value)

    def ask(event: Any) -> None:
        try:
            advance(0)
        except Enough:  # it cannot pass through the solver; whoever asks next is told again
            event.interrupt()

    solver.cbMipInterrupt.subscribe(ask)
    solver.passModel(_program(columns, sets))
    solver.run()
    if solver.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return []
    values = np.array(solver.getSolution().col_value)
    return np.flatnonzero(values > 0.5).tolist()


def _quiet_solver() -> highspy.Highs:
    """HiGHS writes a banner to descriptor 1 while it is made, before any option can be set; standard output
    is the plan's alone. Nobody else may write there meanwhile."""
    if sys.stdout is None:  # closed, and descriptor 1 may be anybody's
        return highspy.Highs()
    sys.stdout.flush()
    flush = ctypes.CDLL(None).fflush  # the banner waits in C's own buffer where the output is no terminal
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        flush(None)
        os.dup2(nowhere, 1)
        return highspy.Highs()
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _program(columns: list[tuple[int, tuple[int, ...], float]], sets: Sets) -> highspy.HighsLp:
    """One row a model, and one for the devices."""
    count, devices = len(sets.appraiser.problem.models), sets.appraiser.problem.gpus.count
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(columns), count + 1
    program.sense_ = highspy.ObjSense.kMaximize
    program.col_cost_ = np.array([worth for _, _, worth in columns])
    program.col_lower_, program.col_upper_ = np.zeros(len(columns)), np.ones(len(columns))
    program.row_lower_ = np.array([1.0] * count + [-inf])
    program.row_upper_ = np.array([1.0] * count + [float(devices)])
    matrix = program.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kColwise
    lengths = [len(models) + 1 for _, models, _ in columns]
    matrix.start_ = np.concatenate([[0], np.cumsum(lengths)])
    matrix.index_ = np.array([row for _, models, _ in columns for row in (*models, count)])
    matrix.value_ = np.array([v for gpus, models, _ in columns for v in (*[1.0] * len(models), float(gpus))])
    program.integrality_ = [highspy.HighsVarType.kInteger] * len(columns)
    return program
