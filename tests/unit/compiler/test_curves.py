"""Fronts, envelopes and BD-rates, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from narrowcast.compiler.curves import Curve, bd_rate, cheapest, front, pareto

SIZES, REACHED = [100.0, 200.0, 400.0, 900.0], [0.2, 0.5, 0.6, 0.9]


class TestFront:
    @pytest.mark.parametrize(
        ("sizes", "reached", "kept"),
        [
            ([1, 2, 3], [0.1, 0.2, 0.3], [0, 1, 2]),
            ([3, 1, 2], [0.3, 0.1, 0.2], [1, 2, 0]),  # by ascending bytes
            ([1, 2, 3], [0.1, 0.05, 0.3], [0, 2]),  # the second costs more and reaches less
            ([1, 2, 3], [0.1, 0.1, 0.1], [0]),
            ([5, 5, 5], [0.1, 0.3, 0.2], [1]),
            ([5, 5], [0.3, 0.3], [0]),  # of equal points the first
            ([4], [0.5], [0]),
            ([], [], []),
        ],
    )
    def test_points_that_none_beats(self, sizes, reached, kept):
        assert pareto(sizes, reached).tolist() == kept

    def test_no_point_is_beaten_by_another(self):
        random = np.random.default_rng(0)
        sizes, reached = random.integers(1, 40, 200), random.integers(0, 40, 200)
        kept = set(pareto(sizes, reached).tolist())
        points = list(zip(sizes, reached, strict=True))
        for k, (size, figure) in enumerate(points):
            beaten = any(s <= size and r >= figure and (s, r) != (size, figure) for s, r in points)
            assert (k in kept) == (not beaten and points.index((size, figure)) == k)


class TestCurve:
    def test_bytes_between_two_points_are_interpolated_in_their_logarithm(self):
        curve = front(SIZES, REACHED)
        assert curve.bytes_at(0.5) == pytest.approx(200)
        assert curve.bytes_at(0.55) == pytest.approx((200 * 400) ** 0.5)
        assert curve.bytes_at(0.3) == pytest.approx(100 * 2 ** (1 / 3))

    def test_below_the_first_point_nothing_smaller_was_tried(self):
        assert front(SIZES, REACHED).bytes_at(0.0) == pytest.approx(100)

    def test_above_the_last_point_it_is_not_reached(self):
        assert front(SIZES, REACHED).bytes_at(0.901) is None
        assert front([], []).bytes_at(0.1) is None


class TestCheapest:
    def test_each_curve_where_it_is_the_better_one(self):
        cheap, dear = front([10, 1000], [0.0, 1.0]), front([100, 200], [0.4, 0.9])
        best = cheapest([cheap, dear])
        assert best.reached.tolist() == [0.0, 0.4, 0.9, 1.0]
        assert np.exp(best.log_bytes) == pytest.approx([10, 10 * 100**0.4, 200, 1000])  # cheap's 63 B beats 100 B

    def test_a_curve_that_ends_leaves_the_rest_to_the_others(self):
        best = cheapest([front([10, 20], [0.1, 0.2]), front([100, 200], [0.15, 0.5])])
        assert best.bytes_at(0.2) == pytest.approx(20)
        assert best.bytes_at(0.5) == pytest.approx(200)
        assert best.bytes_at(0.51) is None

    def test_nowhere_dearer_than_any_of_them(self):
        random = np.random.default_rng(1)
        for _ in range(50):
            curves = [front(random.uniform(100, 9000, 6), random.uniform(0, 1, 6)) for _ in range(3)]
            best = cheapest(curves)
            for wanted in random.uniform(0, 1, 40):
                there = [size for curve in curves if (size := curve.bytes_at(wanted)) is not None]
                if there:
                    assert best.bytes_at(wanted) <= min(there) * (1 + 1e-12)
                else:
                    assert best.bytes_at(wanted) is None

    def test_of_none_or_of_one(self):
        assert len(cheapest([])) == 0
        alone = cheapest([front([], []), front(SIZES, REACHED)])
        assert alone.bytes_at(0.55) == pytest.approx(front(SIZES, REACHED).bytes_at(0.55))


class TestBdRate:
    @pytest.mark.parametrize("factor", [0.25, 0.9, 1.0, 4.0])
    def test_a_curve_shifted_by_a_factor_is_off_by_that_factor(self, factor):
        found = bd_rate(front(np.array(SIZES) * factor, REACHED), front(SIZES, REACHED))
        assert found.bd_rate == pytest.approx(factor - 1)
        assert (found.low, found.high) == (0.2, 0.9)

    def test_other_points_on_the_same_curve_make_no_difference(self):
        reference = front([100, 1000], [0.0, 1.0])
        dense = front(100 * 10 ** np.linspace(0, 1, 7), np.linspace(0, 1, 7))
        assert bd_rate(dense, reference).bd_rate == pytest.approx(0, abs=1e-12)

    def test_only_the_common_range_counts(self):
        """Half the bytes between 0.2 and 0.6; what the reference costs above that says nothing."""
        ours, reference = front([50, 100, 200], REACHED[:3]), front([*SIZES[:3], 1e9], REACHED)
        found = bd_rate(ours, reference)
        assert found.bd_rate == pytest.approx(-0.5)
        assert (found.low, found.high) == (0.2, 0.6)

    def test_by_hand_where_the_lines_cross(self):
        """log(ours) - log(theirs) goes from +ln 2 at 0 to -ln 2 at 0.5, and stays there: on average -ln(2) / 2."""
        ours, theirs = front([200, 201, 400], [0.0, 0.5, 1.0]), front([100, 402, 800], [0.0, 0.5, 1.0])
        assert bd_rate(ours, theirs).bd_rate == pytest.approx(2**-0.5 - 1, abs=1e-9)

    def test_is_undone_by_its_reverse(self):
        ours, theirs = front([90, 210, 500], [0.1, 0.55, 0.7]), front(SIZES, REACHED)
        there, back = bd_rate(ours, theirs).bd_rate, bd_rate(theirs, ours).bd_rate
        assert (1 + there) * (1 + back) == pytest.approx(1)

    @pytest.mark.parametrize(
        "ours",
        [
            front([50, 60], [0.95, 0.99]),  # above the reference
            front([50, 60], [0.05, 0.1]),  # below it
            front([50, 60], [0.05, 0.2]),  # they touch in a point
            front([50], [0.5]),  # a single point has no range
            front([50, 60, 70], [0.5, 0.5, 0.5]),  # of which one is left
            front([], []),
        ],
    )
    def test_without_a_common_range_there_is_none(self, ours):
        assert bd_rate(ours, front(SIZES, REACHED)) is None
        assert bd_rate(front(SIZES, REACHED), ours) is None

    def test_agrees_with_a_fine_numerical_integral(self):
        ours, theirs = front([90, 210, 500], [0.1, 0.55, 0.7]), front(SIZES, REACHED)
        grid = np.linspace(0.2, 0.7, 200_001)
        apart = ours.log_bytes_at(grid) - theirs.log_bytes_at(grid)
        assert bd_rate(ours, theirs).bd_rate == pytest.approx(np.expm1(apart.mean()), abs=1e-5)


def test_a_curve_is_as_long_as_its_points():
    assert len(Curve(np.array([0.1, 0.2]), np.array([1.0, 2.0]))) == 2
