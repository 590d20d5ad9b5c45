"""Promises of the pauses before another try."""

import pytest

from june.backoff import BackOff


def test_pauses_grow_by_the_factor_up_to_the_longest() -> None:
    doubling = BackOff(first_s=0.25, longest_s=30)
    assert [doubling.pause_s(failures) for failures in range(1, 10)] == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    fourfold = BackOff(first_s=0.5, longest_s=8, factor=4)
    assert [fourfold.pause_s(failures) for failures in range(1, 5)] == [0.5, 2, 8, 8]


def test_any_number_of_failures_has_a_pause() -> None:
    assert BackOff(first_s=1, longest_s=60).pause_s(1_000_000) == 60


@pytest.mark.parametrize(("asked_s", "pause_s"), [(None, 2), (0, 2), (1.5, 2), (90, 90)])
def test_a_pause_is_as_long_as_the_other_side_asks_for(asked_s: float | None, pause_s: float) -> None:
    assert BackOff(first_s=1, longest_s=10).pause_s(2, asked_s) == pause_s


def test_a_spread_makes_each_pause_longer_by_a_random_share() -> None:
    back_off = BackOff(first_s=4, longest_s=100, spread=0.25)
    pauses_s = [back_off.pause_s(1) for _ in range(50)]
    assert 4 <= min(pauses_s) < max(pauses_s) <= 5
    assert len(set(pauses_s)) > 40
    assert 60 <= back_off.pause_s(1, 60) <= 61
