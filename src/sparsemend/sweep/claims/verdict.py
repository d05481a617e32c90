"""The verdict on a comparison, and on a statement over all its settings.

    d_sw = log measure of ours - log measure of rival, seed s, test window w (one w without windows)
    effect = exp(mean d), with its paired 95 % interval (sweep/arena/interval)

Windows that count unequally, as a task's examples do by their labelled tokens, have weights: the
mean d is weighted.  Over settings, d is first averaged over them: every setting has the same
windows, so that the interval is of the mean logarithm of their effects.  One large effect can carry
that mean, so that a statement over settings is no better than what they say one by one (`overall`).

A model that collapsed on one side alone is evidence without a number (`with_collapses`); a seed on
which both sides collapsed says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sparsemend.sweep.arena.interval import Ratio, perplexity_ratio

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "not told apart"
MIXED = "mixed"  # over settings alone

Logarithms = Mapping[int, np.ndarray]  # seed -> (W,)


def verdict(effect: Ratio, at_most: float) -> str:
    """The verdict of the rule: by the side of `at_most` on which the whole interval lies."""
    if effect.high < at_most:
        return HOLDS
    return FAILS if effect.low > at_most else OPEN


def with_collapses(judged: str | None, *, ours: int, rival: int) -> str:
    """The verdict of an interval, None without one, where one side alone collapsed on some seeds.

    ours, rival: the seeds on which that side collapsed and the other did not.  Such a seed has a
    number in the interval only where its perplexity is finite, and in any case takes away what the
    interval says to the contrary.
    """
    if judged is None:
        return OPEN if bool(ours) == bool(rival) else FAILS if ours else HOLDS
    contradicted = (judged == HOLDS and ours) or (judged == FAILS and rival)
    return OPEN if contradicted else judged


def overall(pooled: str | None, settings: Sequence[str]) -> str:
    """The verdict over settings: that of the pooled interval, if no setting says the contrary.

    pooled: None without an interval; then what all settings say alike.  settings: without those in
    which both sides collapsed on all seeds, which say nothing.
    """
    said = {*settings, pooled}
    if HOLDS in said and FAILS in said:
        return MIXED
    if pooled is None:
        return settings[0] if len(set(settings)) == 1 else OPEN
    return pooled


def effect_of(
    ours: Logarithms, rival: Logarithms, weights: np.ndarray | None = None
) -> tuple[Ratio, tuple[int, ...]] | None:
    """The effect over the seeds that both sides have, and those seeds.

    weights: how much each window counts, (W,), None for equally.  None without a finite one, and of
    a single number (one seed, no windows), which has no interval.
    Raises ValueError where the windows of the sides are not the same in number.
    """
    seeds = tuple(sorted(ours.keys() & rival.keys()))
    if not seeds:
        return None
    sides = [np.stack([side[seed] for seed in seeds]) for side in (ours, rival)]
    if sides[0].size < 2 or not all(np.isfinite(side).all() for side in sides):
        return None
    return perplexity_ratio(*sides, weights=weights), seeds


def pooled_effect(
    pairs: Sequence[tuple[Logarithms, Logarithms]], weights: np.ndarray | None = None
) -> tuple[Ratio, tuple[int, ...]] | None:
    """The effect over several settings, of the seeds that all of them have; None without any.

    weights: as those of `effect_of`, the same in every setting.
    """
    seeds = set.intersection(*(set(o.keys() & r.keys()) for o, r in pairs)) if pairs else set()
    windows = {side[seed].shape for pair in pairs for side in pair for seed in seeds}
    if not seeds or len(windows) != 1:
        return None
    ours, rival = ({s: np.mean([p[i][s] for p in pairs], axis=0) for s in seeds} for i in (0, 1))
    return effect_of(ours, rival, weights)
