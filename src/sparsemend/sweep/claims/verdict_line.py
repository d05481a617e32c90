"""A statement's verdict as one line, for the terminal and the top of a page."""

from __future__ import annotations

from collections import Counter

from sparsemend.sweep.arena.interval import Ratio
from sparsemend.sweep.claims.claim import Claim, Judged, KeptGain
from sparsemend.sweep.claims.verdict import FAILS, HOLDS, OPEN


def verdict_lines(claim: Claim, *, mark: str = "") -> list[str]:
    """A line per statement and text: the verdict, the effect, and how settings differ.

    Last those that nothing measured.

    mark: what stands on both sides of the verdict.
    """
    return [*(_verdict_line(one, mark) for one in claim.judged), *claim.unmeasured]


def _verdict_line(one: Judged, mark: str) -> str:
    statement = one.statement
    missing = one.progress.missing
    verdict = f"{mark}{one.verdict}{' so far' * bool(missing)}{mark}"
    of_planned = f" ({one.progress.text})" if missing else ""
    parts = [f"{verdict}{of_planned}", _overall(one), _settings(one), *_collapses(one)]
    gains = (gain_text(c.gain) for c in one.comparisons if c.gain is not None)
    return f"{statement.says} ({one.model}, {one.text}): " + "; ".join([*parts, *gains])


def _overall(one: Judged) -> str:
    if one.effect is None:
        return "no seed has a number in every setting"
    measured = sum(c.effect is not None for c in one.comparisons)
    settings = len(one.comparisons)
    which = "all" if measured == settings else f"{measured} of {settings}"
    over = "" if settings == 1 else f" over {which} settings"
    seeds = f"seed{'s' * (len(one.seeds) > 1)} {', '.join(map(str, one.seeds))}"
    return f"x {_interval(one.effect)}{over}, {seeds}"


def _settings(one: Judged) -> str:
    """`3 settings: holds here in 1, does not hold here in 1, not told apart in 1`"""
    counts = Counter(c.verdict for c in one.comparisons)
    parts = ", ".join(f"{v} in {counts[v]}" for v in (HOLDS, FAILS, OPEN) if counts[v])
    return f"{len(one.comparisons)} setting{'s' * (len(one.comparisons) > 1)}: {parts}"


def _collapses(one: Judged) -> list[str]:
    ours, rival, pairs = one.collapses
    counted = [f"ours in {ours}"] * bool(ours) + [f"the rival in {rival}"] * bool(rival)
    return [f"collapsed: {' and '.join(counted)} of {pairs} pairs"] if counted else []


def gain_text(gain: KeptGain) -> str:
    """What is kept of the gain of another side over the rival."""
    its = f"{gain.name} over the rival x {_interval(gain.effect)}"
    if gain.kept is None:
        return f"{its}, no gain that is told from none"
    return (
        f"{its}, of which ours keeps {gain.kept:.2f}; at least {gain.share:g}: {gain.verdict}, "
        f"x {_interval(gain.over_goal)} of what keeps just that"
    )


def _interval(effect: Ratio) -> str:
    return f"{effect.mean:.3f} ({effect.low:.3f} - {effect.high:.3f})"
