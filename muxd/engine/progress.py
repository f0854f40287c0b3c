"""What becomes of a sequence's rows as it goes on: those that windows have passed fade.

Pure. Used by the row keeper alone.
"""

import numpy as np

from muxd.engine.lane import Lane
from muxd.engine.sequence import Sequence
from muxd.pool.ledger import Ledger


def fade(ledger: Ledger, lane: Lane, sequence: Sequence) -> bool:
    """Rows that no token to come sees in layers with windows. True: there are more of them.

    What is in flight may be behind ``computed`` only with tokens that see no more than the next one does.
    """
    passed = lane.passed(sequence.computed)
    if passed <= sequence.faded or not sequence.rows:
        return False
    ledger.fade(lane.spec.model, np.asarray(sequence.rows[sequence.faded : passed], dtype=np.int32))
    sequence.faded = passed
    return True
