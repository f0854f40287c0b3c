"""What is checked after a churn: the daemon's books and its clients', and answers against the model's own."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoModelForCausalLM

from muxd.errors import MuxdError
from support.churn import Asked
from support.live import LiveDaemon
from support.logits import greedy_choices, reference_logits

MOST_TIES = 0.01  # of the streams compared
TIE = 1e-4  # nats between the two best tokens below which another batch shape may choose the other


class Played(Protocol):
    """A churn that is over: ``asked`` is all that clients ever sent; ``states``: request -> how its choices
    ended, by the daemon's journal; ``alone``: (model, prompt) -> the answer that nobody disturbed."""

    daemon: LiveDaemon
    models: dict[str, Path]
    asked: list[Asked]
    states: dict[str, list[str]]
    prompts: dict[str, list[list[int]]]
    alone: dict[tuple[str, int], list[int]]

    def expected(self, one: Asked) -> list[int]:
        """What it gets if nothing comes between."""
        ...


class Judge:
    """Compares streams with the answers alone; where they differ the reference itself is asked."""

    def __init__(self, churn: Played):
        self.churn = churn
        self.compared, self.ties = 0, 0
        self.wrong: list[str] = []
        self._references = {
            model: AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
            for model, path in churn.models.items()
        }

    def alone(self) -> None:
        """The answers alone are the reference's own greedy decoding."""
        for (model, index), tokens in self.churn.alone.items():
            prompt = self.churn.prompts[model][index]
            chosen = greedy_choices(self._references[model], prompt, tokens)
            for place in (p for p, pair in enumerate(zip(chosen, tokens, strict=True)) if len(set(pair)) > 1):
                if self.gap(model, prompt + tokens[:place]) >= TIE:
                    self.wrong.append(f"alone {model} {index} at {place}")

    def stream(self, one: Asked) -> None:
        expected = self.churn.expected(one)
        for tokens, finish in zip(one.answers, one.finishes, strict=True):
            self.compared += 1
            same = expected[: len(tokens)]
            if tokens != same:
                place = next(p for p, t in enumerate(tokens) if same[p : p + 1] != [t])
                if place < len(same) and self.gap(one.model, one.prompt + same[:place]) < TIE:
                    self.ties += 1
                else:
                    self.wrong.append(f"{one} differs at {place}: {same}")
            elif finish and len(tokens) < len(expected):
                self.wrong.append(f"{one} ended early, expected {expected}")
            elif one.outcome == "served" and not finish:
                self.wrong.append(f"{one} has no finish reason")

    def gap(self, model: str, tokens: list[int]) -> float:
        best = reference_logits(self._references[model], tokens)[-1].log_softmax(-1).topk(2).values
        return float(best[0] - best[1])


def check_answers(churn: Played) -> None:
    """Every answer is the model's own, but for ties. Prints how many were compared."""
    judge = Judge(churn)
    judge.alone()
    for one in churn.asked:
        judge.stream(one)
    print(f"{judge.compared} streams compared, {judge.ties} ties")
    assert not judge.wrong, judge.wrong[:3]
    assert judge.ties <= MOST_TIES * judge.compared


def series(text: str, name: str) -> Counter[tuple[str, ...]]:
    """Label values -> count."""
    found = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
    return Counter({tuple(re.findall(r'="([^"]*)"', labels)): int(float(n)) for labels, n in found})


def check_both_sides(churn: Played, text: str) -> None:
    """Every request ended once, and as its client saw it, in the access log, the journal and the counters."""
    ends = re.findall(r"id=(churn-\d+) .*outcome=(\w+)", churn.daemon.log)
    logged = dict(ends)
    assert len(logged) == len(ends), "a request has two lines"
    counted: Counter[tuple[str, ...]] = Counter()
    for one in churn.asked:
        states = churn.states[one.id]
        counted.update((one.model, state) for state in states)
        allowed: tuple[Any, set[str]] = {
            "served": (["served"], {"served"}),
            "refused": (["refused"], {"refused", "failed", "cancelled"}),
            "failed": (["failed"], {"failed", "served", "cancelled"}),
            "cancelled": (
                ["cancelled", "served", "failed", "refused", None],
                {"cancelled", "served", "failed"},
            ),
        }[one.outcome or "nothing"]
        assert logged.get(one.id) in allowed[0], (one, logged.get(one.id))
        assert set(states) <= allowed[1] | ({"refused"} if one.outcome == "cancelled" else set()), (
            one,
            states,
        )
        if one.outcome in ("served", "failed"):
            assert one.outcome in states, (one, states)
        if one.outcome == "served":
            assert len(states) == one.n
    told = +series(text, "muxd_requests_total")
    assert counted == told, {"journal only": counted - told, "counters only": told - counted}
    now = churn.daemon.status().requests
    ended = Counter(state for (_, state), n in counted.items() for _ in range(n))
    assert (now.running, now.waiting) == (0, 0)
    assert ended == +Counter(
        served=now.served, refused=now.refused, cancelled=now.cancelled, failed=now.failed
    )
    check_statuses(churn, series(text, "muxd_http_requests_total"))


def check_statuses(churn: Played, answered: Counter[tuple[str, ...]]) -> None:
    """Of clients that left the daemon may have had the last word already."""
    theirs = Counter(str(one.status) for one in churn.asked if one.outcome != "cancelled")
    left = sum(one.outcome == "cancelled" for one in churn.asked)
    ours = Counter({key[2]: n for key, n in answered.items() if "/v1/completions" in key})
    assert not theirs - ours, (theirs, ours)
    assert (ours - theirs).total() <= left


def why(daemon: LiveDaemon, id: str) -> list[str]:
    """How each choice ended; none for what never became a sequence."""
    try:
        return [times.state for times in daemon.admin.why(id)]
    except MuxdError:
        return []
