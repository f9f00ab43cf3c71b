"""Numbers as people read them."""

from __future__ import annotations

import pytest

from narrowcast import text


@pytest.mark.parametrize(
    ("form", "value", "shown"),
    [
        (text.human_bytes, 0, "0 B"), (text.human_bytes, 831, "831 B"), (text.human_bytes, 1.5, "2 B"),
        (text.human_bytes, 999.4, "999 B"), (text.human_bytes, 999.6, "1 kB"), (text.human_bytes, 4213, "4.21 kB"),
        (text.human_bytes, 999_400, "999 kB"), (text.human_bytes, 999_700, "1 MB"), (text.human_bytes, 17e6, "17 MB"),
        (text.human_bytes, 999.6e6, "1 GB"), (text.human_bytes, 1.25e12, "1250 GB"), (text.human_bytes, None, "-"),
        (text.human_count, 12, "12"), (text.human_count, 999_600, "1 M"), (text.human_count, 1.81e9, "1.81 G"),
        (text.human_count, 113e6, "113 M"), (text.human_count, 3.2e12, "3200 G"),
        (text.human_rate, 300, "300 bit/s"), (text.human_rate, 999.7, "1 kbit/s"), (text.human_rate, 8e5, "800 kbit/s"),
        (text.human_rate, 999.9e6, "1 Gbit/s"), (text.human_rate, 0.25, "0.25 bit/s"), (text.human_rate, None, "-"),
        (text.human_ms, 0.35, "0.35 ms"), (text.human_ms, 999.4, "999 ms"), (text.human_ms, 999.6, "1 s"),
        (text.human_ms, 1250, "1.25 s"), (text.human_ms, 1_250_000, "1250 s"), (text.human_ms, -2e6, "-2000 s"),
        (text.human_joules, 850e-6, "850 µJ"), (text.human_joules, 999.8e-6, "1 mJ"), (text.human_joules, 0.0123, "12.3 mJ"),
        (text.human_joules, 0.9996, "1 J"), (text.human_joules, 0, "0 J"), (text.human_joules, -1.4, "-1.4 J"),
        (text.human_joules, 999.7, "1 kJ"), (text.human_joules, 5e6, "5000 kJ"), (text.human_joules, None, "-"),
    ],
)  # fmt: skip
def test_what_rounds_up_to_a_thousand_is_one_of_the_next_unit(form, value, shown):
    assert form(value) == shown
