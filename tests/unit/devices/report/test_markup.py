"""Markup: text stays text, whatever it says."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.devices.report.markup import Markup, escape, join, tag


class Reader(HTMLParser):
    """Reads back what a browser would see."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, name, attributes) -> None:
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data) -> None:
        self.text += data


@given(st.text(max_size=60))
def test_any_text_is_read_back_as_text_and_nothing_else(words):
    read = Reader(tag("p", words, title=words))
    assert [name for name, _ in read.tags] == ["p"]
    shown = read.text.replace("\r\n", "\n").replace("\r", "\n")
    assert shown == read.tags[0][1]["title"].replace("\r\n", "\n").replace("\r", "\n")
    if words.isprintable() and "\N{REPLACEMENT CHARACTER}" not in shown:
        assert shown == words


@pytest.mark.parametrize("unwanted", ["\x00", "\x1b", "\x7f", "\u202e", "\u2066", "\ud800", "\x0b"])
def test_controls_and_what_turns_text_around_are_replaced(unwanted):
    assert escape(f"a{unwanted}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_what_is_markup_is_left_alone_and_what_is_none_is_left_out():
    assert tag("b", tag("i", "<"), None, ["x", Markup("&amp;")], 2.5) == "<b><i>&lt;</i>x&amp;2.5</b>"
    assert join(None) == ""


def test_attributes():
    found = tag("path", class_="a", stroke_width=1.239, hidden=True, open=False, id=None, viewBox="0 0 1 1", tabindex=0)
    assert found == '<path class="a" stroke-width="1.24" hidden viewBox="0 0 1 1" tabindex="0"></path>'
    assert tag("meta", name="x") == '<meta name="x">'
