"""The ledger adds up, whatever happens in whatever order."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.head.accounting import Account, Ledger
from narrowcast.head.errors import AccountingError

FATES = ["answered", "local", "spooled", "dropped"]


@given(
    st.lists(st.tuples(st.sampled_from(["capture", "end", "again", "drop"]), st.sampled_from(FATES), st.integers(0, 9)))
)
def test_every_frame_has_one_end(events):
    ledger, under_way, ended, ends = Ledger(), [], [], Counter()
    captured = 0
    for event, fate, number in events:
        reason = f"reason {number % 3}" if fate == "dropped" else ""
        if event == "capture":
            under_way.append(ledger.capture())
            captured += 1
        elif event == "end" and under_way:
            frame = under_way.pop(number % len(under_way))
            ledger.end(frame, fate, reason)
            ended.append(frame)
            ends[reason or fate] += 1
        elif event == "again" and ended:
            with pytest.raises(AccountingError, match="has ended before"):
                ledger.end(ended[number % len(ended)], fate, reason)
        elif event == "drop":
            ledger.drop("full")
            captured += 1
            ends["full"] += 1
        account = ledger.account
        assert account.adds_up
        assert (account.captured, account.under_way) == (captured, len(under_way))
        told = Counter(
            {"answered": account.answered, "local": account.local, "spooled": account.spooled, **account.dropped}
        )
        assert +told == ends


def test_an_account_that_does_not_add_up():
    assert Account(3, 1, 1, 0, 0, {"full": 1}).adds_up
    assert not Account(3, 1, 1, 0, 0, {}).adds_up
    assert not Account(3, 1, 1, 1, 1, {"full": 1}).adds_up


def test_what_cannot_be():
    ledger = Ledger()
    with pytest.raises(AccountingError, match="never began"):
        ledger.end(0, "answered")
    frame = ledger.capture()
    with pytest.raises(AccountingError, match="what is dropped has one"):
        ledger.end(frame, "dropped")
    with pytest.raises(AccountingError, match="what is dropped has one"):
        ledger.end(frame, "answered", "late")
    assert ledger.account == Account(1, 1, 0, 0, 0, {})


def test_from_several_threads():
    ledger = Ledger()

    def work() -> None:
        for k in range(500):
            ledger.end(ledger.capture(), FATES[k % 3])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.account == Account(2000, 0, 668, 668, 664, {})
