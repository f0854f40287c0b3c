"""Adaptive batch scheduling (ADBS, MuxServe Algorithm 3): prefills first, decodes fill up, quotas move."""

from muxd.engine.actions import QuotaMoved
from muxd.engine.lane import Lane
from muxd.engine.policies.base import Policy

# A held prefill that has waited this many drain timeouts lets no decode step pass any more.
_STRICT_AFTER = 4


class Mux(Policy):
    """1. owed steps; 2. one prefill batch, if none runs; 3. a prefill short of share holds decodes back;
    4. decodes. The published algorithm has no first step: its prefills can starve a running stream."""

    name = "mux"
    memory = "quotas"
    _held_since = 0.0

    def launch(self, now: float) -> None:
        self._adapt(now)
        self.rows.reclaim(now)
        paid = self._pay_owed_steps(now)  # 1
        held = self._launch_prefill(now) if paid and not self.board.prefilling else None  # 2
        if held != self.held:  # 3
            self.held, self._held_since = held, now
        if paid:
            self._launch_decodes(now)  # 4

    def deadline(self, now: float) -> float | None:
        """A running stream's step becomes overdue, or the quotas are due."""
        due = [self._quotas_due(now)]
        if self.held is not None or self.board.prefilling:
            patience = self.board.settings.drain_timeout
            due += [lane.decode_ended + patience for lane in self.board.decodable.lanes]
        return min((time for time in due if time is not None and time > now), default=None)

    # ---- decodes ----------------------------------------------------------------------------------

    def _pay_owed_steps(self, now: float) -> bool:
        """Streams that have waited ``drain_timeout`` while a prefill went first step before the next one.

        False while one of them does not find its share: then nothing else starts, so that it comes free.
        """
        for lane in self.board.decodable.lanes:
            overdue = now - lane.decode_ended >= self.board.settings.drain_timeout
            if overdue and lane.stepped < self.board.prefilled and not self._step(lane, now):
                return False
        return True

    def _launch_decodes(self, now: float) -> None:
        lanes = self.board.decodable.lanes
        for lane in lanes:
            if not self.board.shares.any_free:
                return
            if not self._may_decode(lane, now) or self._step(lane, now):
                continue
            overdue = now - lane.decode_ended >= self.board.settings.drain_timeout
            if overdue or self.batches.begun - lane.launched > len(lanes):
                return  # those after it would take the share that it waits for, again and again

    def _step(self, lane: Lane, now: float) -> bool:
        """Start a decode step. False only when the share is not there."""
        if not lane.running or not lane.free(prefill=False):
            return True  # an earlier one has preempted all that ran here
        share = self.grant(lane, prefill=False, prefilling=self.board.prefilling > 0)
        if share is not None:
            self.batches.decode(lane, share, now)
        return share is not None

    def _may_decode(self, lane: Lane, now: float) -> bool:
        if self.held is None:
            return True
        if now - self._held_since >= _STRICT_AFTER * self.board.settings.drain_timeout:
            return False  # the starvation bound of docs/design.md §5: now the prefill goes first
        return now - lane.decode_ended >= self.board.settings.drain_timeout

    # ---- prefills ---------------------------------------------------------------------------------

    def _launch_prefill(self, now: float) -> str | None:
        """Round-robin over models; returns the model whose turn it is but whose share is not free."""
        for lane in self.board.waiting.lanes:
            if not lane.ready or not self.rows.admissible(lane):
                continue  # nothing to do, or no rows: holding decodes back would not help
            if not lane.free(prefill=True):
                if not lane.flights or lane.flights[0].share >= self.board.shares.floor(lane.spec.share):
                    continue  # its own decode step is due, or will leave enough when it ends
                return lane.spec.model
            share = self.grant(lane, prefill=True, prefilling=True)
            if share is None:
                return lane.spec.model
            if self.batches.prefill(lane, share, now):
                return None
        return None

    # ---- quotas -----------------------------------------------------------------------------------

    def _adapt(self, now: float) -> None:
        quotas = self.rows.quotas
        if quotas is not None and quotas.due(now):
            for move in quotas.adapt(self.rows.demands(now), now):
                self.rows.look_again()
                self.board.actions.append(QuotaMoved(move.model, move.before, move.after, move.reason))

    def _quotas_due(self, now: float) -> float | None:
        """Only while somebody is there: an idle daemon need not wake up."""
        if self.rows.quotas is None or not (self.board.waiting or self.board.decodable):
            return None
        return self.rows.quotas.next_due()
