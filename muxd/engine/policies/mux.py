"""Adaptive batch scheduling (ADBS, MuxServe Algorithm 3): prefills first, decodes fill up, quotas move.

What it has more than the published algorithm, and why, is in the engine's ``design.md``.
"""

from muxd.engine.actions import QuotaMoved
from muxd.engine.lane import FEW_TOKENS, Lane
from muxd.engine.policies.base import Policy

# A held prefill that has waited this many drain timeouts lets no decode step pass any more.
_STRICT_AFTER = 4
_PREFILLS = 2  # at once, of different models: a long one does not stop the short ones
_PACES = 1.5  # of its own shortest steps a stream can wait for its next before it is late
_FIXED = 4.0  # paces a prefill lasts at least where it is cut: a batch has to read all weights, too
_DEFAULT_TARGET = 5.0  # seconds to a first token of models without a target, beside those with one


class Mux(Policy):
    """1. owed steps; 2. prefills, two at once; 3. a prefill short of share holds decodes back; 4. decodes,
    the latest first."""

    name = "mux"
    memory = "quotas"
    _held_since = 0.0

    def launch(self, now: float) -> None:
        self._adapt(now)
        self.rows.reclaim(now)
        paid = self._pay_owed_steps(now)  # 1
        held = self._launch_prefills(now) if paid else None  # 2
        if held != self.held:  # 3
            self.held, self._held_since = held, now
        if paid:
            self._launch_decodes(now)  # 4

    def deadline(self, now: float) -> float | None:
        """A running stream's step becomes overdue, or the quotas are due."""
        due = [self._quotas_due(now)]
        if self.held is not None or self.board.prefilling:
            due += [self._until(lane) for lane in self.board.decodable.lanes]
        return min((time for time in due if time is not None and time > now), default=None)

    def quiet_until(self, now: float) -> float:
        """Quotas move also while everybody's step is in flight."""
        quotas = self.rows.quotas
        return super().quiet_until(now) if quotas is None else quotas.next_due()

    # ---- decodes ----------------------------------------------------------------------------------

    def _pay_owed_steps(self, now: float) -> bool:
        """Streams that have waited ``drain_timeout`` while a prefill went first step before the next one.

        False while one of them does not find its share: then nothing else starts, so that it comes free.
        """
        for lane in self.board.decodable.lanes:
            owed = self._overdue(lane, now) and lane.stepped < self.board.prefilled
            if owed and not self._step(lane, now):
                return False
        return True

    def _launch_decodes(self, now: float) -> None:
        lanes = sorted(self.board.decodable.lanes, key=self._late)
        for lane in lanes:
            if not self.board.shares.any_free:
                return
            if not self._may_decode(lane, now) or self._step(lane, now):
                continue
            if self._overdue(lane, now) or self.batches.begun - lane.launched > len(lanes):
                return  # those after it would take the share that it waits for, again and again

    def _overdue(self, lane: Lane, now: float) -> bool:
        return now >= self._until(lane)

    def _until(self, lane: Lane) -> float:
        """How long its streams can be left without a step."""
        return lane.decode_ended + self.board.settings.drain_timeout

    def _late(self, lane: Lane) -> float:
        """When its streams are late: by their own pace, so that small models do not wait for the steps of
        large ones, and at the latest after ``drain_timeout``."""
        wanted = lane.spec.config.tpot_slo or _PACES * lane.pace
        return lane.decode_ended + min(wanted, self.board.settings.drain_timeout)

    def _step(self, lane: Lane, now: float) -> bool:
        """Start a decode step. False only when the share is not there."""
        if not lane.running or not lane.free(prefill=False):
            return True  # an earlier one has preempted all that ran here
        share = self.grant(lane, prefill=False, prefilling=self._prefills_full)
        if share is not None:
            self.batches.decode(lane, share, now)
        return share is not None

    def _may_decode(self, lane: Lane, now: float) -> bool:
        if self.held is None:
            return True
        if now - self._held_since >= _STRICT_AFTER * self.board.settings.drain_timeout:
            return False  # the starvation bound of docs/design.md §5: now the prefill goes first
        return self._overdue(lane, now)

    # ---- prefills ---------------------------------------------------------------------------------

    @property
    def _prefills_full(self) -> bool:
        return self.board.prefilling >= _PREFILLS

    def _launch_prefills(self, now: float) -> str | None:
        """Returns the model whose turn it is but whose share is not free. Nobody is held back for a second
        prefill beside one that runs."""
        for lane in self._prompts(now):
            if self._prefills_full:
                return None
            if not lane.ready or not self.rows.admissible(lane):
                continue  # nothing to do, or no rows: holding decodes back would not help
            need = self._prefill_share(lane)
            if not lane.free(prefill=True):
                if not lane.flights or lane.flights[0].share >= self.board.shares.floor(need):
                    continue  # its own decode step is due, or will leave enough when it ends
                return None if self.board.prefilling else lane.spec.model
            share = self.grant(lane, prefill=True, prefilling=True, least=need)
            if share is None:
                return None if self.board.prefilling else lane.spec.model
            self.batches.prefill(lane, share, now, self._prefill_tokens(lane))
        return None

    def _prefill_share(self, lane: Lane) -> int:
        """Arithmetic needs multiprocessors, decode steps beside it do not: the first prefill leaves them the
        least that streams there are need (muxd.cost.peaks: a quarter reaches two thirds of the bandwidth),
        its own among them where a batch of each phase computes at once."""
        if self.board.prefilling:
            return lane.spec.share
        streams = (other for other in self.board.lanes.values() if other.running)
        needs = (other.spec.share for other in streams if other is not lane or lane.spec.split)
        return max(lane.spec.share, min(self.board.shares.most_beside(needs), lane.spec.cap))

    def _prefill_tokens(self, lane: Lane) -> int:
        """As many as the time of a batch allows by what this model's tokens were seen to cost. Never fewer
        than take about as long as one: each would seem to cost more, and the next batch have fewer, down to
        one."""
        most, wanted = self.board.settings.prefill_tokens, self.board.settings.prefill_seconds
        if not (wanted and lane.token_seconds):
            return most
        fit = int(max(wanted, _FIXED * lane.pace) / lane.token_seconds)
        return min(most, max(FEW_TOKENS, fit))

    def _prompts(self, now: float) -> list[Lane]:
        """In turn; where models have targets, who must start soonest goes first, and before that who was
        passed over as often as there are models."""
        lanes = self.board.waiting.lanes
        if not any(lane.spec.config.ttft_slo for lane in lanes):
            return lanes
        passed = self.board.prefills - len(self.board.lanes)
        return sorted(lanes, key=lambda lane: (lane.prefilled_at > passed, self._latest_start(lane)))

    def _latest_start(self, lane: Lane) -> float:
        """Of the first prompt's prefill, to end by its target."""
        first = lane.waiting.head
        wanted = lane.spec.config.ttft_slo or _DEFAULT_TARGET
        return first.arrived + wanted - lane.token_seconds * len(first.tokens)

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
