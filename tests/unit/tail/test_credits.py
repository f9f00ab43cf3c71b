"""The window of a stream."""

from __future__ import annotations

import random

import pytest

from narrowcast.tail.credits import MAX_WINDOW, Credits


@pytest.mark.parametrize(("wished", "granted"), [(0, 1), (1, 1), (8, 8), (10_000, MAX_WINDOW)])
def test_what_is_granted(wished, granted):
    assert Credits(wished).window == Credits(wished).limit == granted


def test_overload_halves_the_window_a_windowful_apart_and_calm_doubles_it():
    credits = Credits(8)
    told = [credits.window for overloaded in [True] * 20 + [False] * 20 if credits.answered(overloaded)]
    assert told == [4, 2, 1, 2, 4, 8]


def test_one_answer_is_always_in_flight():
    credits = Credits(1)
    assert not any(credits.answered(True) for _ in range(10))
    assert credits.window == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_client_that_keeps_the_rules_never_breaks_the_limit(seed):
    """Whatever the delays of either direction are: the server's limit allows for messages on their way."""
    draw = random.Random(seed)
    credits, window, in_flight = Credits(16), 16, 0
    up, down, unanswered = [], [], 0
    for step in range(4000):
        overloaded = step // 300 % 2 == 0
        action = draw.randrange(4)
        if action == 0 and in_flight < window:
            up.append("packet")
            in_flight += 1
        elif action == 1 and up:
            up.pop(0)
            assert unanswered < credits.limit
            unanswered += 1
        elif action == 2 and unanswered:
            unanswered -= 1
            down.append("answer")
            if credits.answered(overloaded):
                down.append(credits.window)
        elif action == 3 and down:
            message = down.pop(0)
            if message == "answer":
                in_flight -= 1
            else:
                window = message
