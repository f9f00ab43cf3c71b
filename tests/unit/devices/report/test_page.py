"""The page: everything is on it, hostile records do no harm, and its colours can be read."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import msgspec
import pytest
from support.colours import ratio, variables
from support.example_run import example_run, small_run
from support.runs import make_run, make_way

from narrowcast.devices.errors import RunError
from narrowcast.devices.profile.figures import Distribution, Histogram
from narrowcast.devices.profile.schema import Link, LinkSettings, Power, Run, Series, Verdict, parse_run, write_run
from narrowcast.devices.report.compare import compare
from narrowcast.devices.report.data import data
from narrowcast.devices.report.entries import Entry, read_entries
from narrowcast.devices.report.page import page
from narrowcast.transport.structs import to_json

replace = msgspec.structs.replace
VOID = {"meta", "br", "col", "link"}
STYLE = resources.files("narrowcast.devices.report").joinpath("style.css").read_text()


class Reader(HTMLParser):
    """Checks that elements nest, and collects text, attributes, ids."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes) -> None:
        self.seen.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name) -> None:
        assert self.open.pop() == name

    def handle_data(self, data) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, name: str) -> int:
        return sum(seen == name for seen, _ in self.seen)


def read(*runs: Run) -> Reader:
    return Reader(page([Entry(f"run {k}", run, several=len(runs) > 1) for k, run in enumerate(runs, 1)]))


@pytest.fixture(scope="module")
def example() -> Run:
    return example_run()


def test_everything_is_on_the_page(example):
    found = read(example)
    for expected in (
        "Splitting pays over the real link", example.verdict.text[0], "What weakens these figures",
            "none of these values was measured",
        "lowest latency", "Accuracy over bytes", "Where the time goes", "Latency against the uplink", "Energy a frame",
        "Power over the run", "How latency spreads", "Every figure", "Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76",
        "the sum of the PMIC's rails", "1.31 % of one core", "known to ± 0.40 ms", "birds, release 12",
        "narrowcast profile birds.ncb 'photos of birds/' --to 192.0.2.7:7433", "cpu-thermal 63.4 °C", "performance",
        "below 14.2 Mbit/s", "split, level 2 over lte", "95.5 %",
    ):  # fmt: skip
        assert expected in found.text, expected


def test_it_asks_nothing_of_any_network_and_runs_nothing(example):
    found = read(example)
    assert found.count("script") == found.count("link") == found.count("img") == found.count("iframe") == 0
    for _, attributes in found.seen:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert "src" not in attributes
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    policy = next(a["content"] for name, a in found.seen if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_a_reader_without_eyes_finds_words_behind_every_plot(example):
    found = read(example)
    drawings = [a for name, a in found.seen if name == "svg"]
    named = [a for a in drawings if a.get("role") == "img"]
    assert len(named) >= 20
    assert all(len(a["aria-label"]) > 30 for a in named)
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in drawings)
    assert found.count("caption") == found.count("table") > 5
    ids = [a["id"] for _, a in found.seen if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for name, a in found.seen if name == "a"]
    assert set(links) <= set(ids)
    assert [n for n, _ in found.seen if n in ("h1", "main", "nav")] == ["h1", "nav", "main"]


def test_several_runs_side_by_side(example):
    found = read(example, example_run(2, scale=1.3))
    assert "2 runs side by side" in found.text
    assert "Median latency over the real link" in found.text
    assert "latency, median: run 1 latency, median: run 2" in found.text


def test_a_run_without_links_stands_beside_those_that_have_some(example):
    alone = make_run([make_way("local", 20.0, link=None, kind="local")])
    found = read(example, replace(alone, links=[], server=None))
    for expected in ("run 1 · over the real link", "run 1 · over lte", "run 2 · without a link"):
        assert expected in found.text
    assert "run 2 · over" not in found.text
    assert "on the board alone" in read(replace(alone, links=[], server=None)).text


def test_what_is_said_once_is_not_said_again(example):
    slow = replace(
        example,
        warnings=["the board was slowed down: under-voltage"],
        conditions=replace(example.conditions, throttled=["under-voltage"]),
        verdict=Verdict(text=["Whether splitting pays over the real link cannot be told: nothing was split."]),
    )
    text = read(slow).text
    assert text.count("slowed down: under-voltage") == text.count("Whether splitting pays over the real link") == 1
    assert "the board was slowed down during the run: under-voltage" in read(replace(slow, warnings=[])).text


def test_where_it_does_not_pay_it_says_so_first():
    run = replace(make_run(), verdict=Verdict(pays=False, text=["Running all of it on the board is faster."]))
    text = read(run).text
    assert (
        text.index("Splitting does not pay over the real link")
        < text.index("Running all of it")
        < text.index("Left is less")
    )
    assert "Whether splitting pays over the real link cannot be told" in read(replace(run, verdict=Verdict())).text


def test_the_verdict_names_the_link_that_it_is_about():
    """The one that was given first, which need not be the fastest."""
    links = [
        Link(name=name, kind="emulated", address="127.0.0.1:1", settings=LinkSettings(
            preset=name, up_kbit=kbit, down_kbit=kbit, delay_ms=1.0, jitter_ms=0.0, loss_percent=0.0, how="a relay"))
        for name, kbit in (("3g", 400.0), ("wifi", 50_000.0))
    ]  # fmt: skip
    text = read(replace(make_run(links=links), verdict=Verdict(pays=True))).text
    assert "Splitting pays over 3g" in text
    assert "Splitting pays over wifi" not in text


def test_what_was_not_measured_is_said_with_the_reason():
    found = read(make_run())
    assert "Energy was not measurable here: no power sensor." in found.text
    assert "no link of this run has a known uplink rate" in found.text
    assert "Nothing was sampled over the run: no power sensor" in found.text
    assert "The board tells no temperatures, clocks or power mode, nor whether anything slowed it down." in found.text
    assert "energy, gross" not in found.text
    assert " 0 J" not in found.text


def test_a_run_without_anything_is_a_page_still():
    run = make_run([make_way("local", 20.0, link=None, kind="local")])
    bare = replace(run.ways[0], latency=Distribution(frames=0), stages=[], median_ms=None)
    empty = replace(run, ways=[], links=[], windows=[], blocks=[])
    for one in (empty, replace(empty, ways=[bare]), replace(run, complete=False, why_incomplete="power cut")):
        assert read(one).count("h2") == 10
    assert "the run is not complete: power cut" in read(replace(run, complete=False, why_incomplete="power cut")).text


HOSTILE = ["</title><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'-->]]><svg onload=alert(1)>",
           "\u202e\x00&lt;b&gt;", "a" * 5000, "{{7*7}}${7*7}", "javascript:alert(1)", "</style><b>"]  # fmt: skip


def poisoned(value, words: str, path: tuple[str, ...] = ()):
    """Every text of a record replaced, but those that refer to one another or must be one of a few."""
    keep = {"format", "kind", "mode", "goal", "unit", "outcome", "metric", "where", "within", "codec", "started"}
    if isinstance(value, dict):
        known = path[-1:] in (("values",), ("hottest_c",), ("libraries",), ("failed",), ("errors_ms",))
        return {
            (f"{words} {key}" if known else key): poisoned(item, words, (*path, key)) for key, item in value.items()
        }
    if isinstance(value, list):
        return [poisoned(item, words, path) for item in value]
    if not isinstance(value, str) or path[-1] in keep or (path[-1] == "name" and "stages" in path):
        return value
    if path[0] == "plan" and path[1] == "ways":
        return value
    return value + words if path[-1] in ("id", "way", "against", "link", "name", "runner_up") else words


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_records_put_nothing_on_the_page_but_text(example, words):
    small = replace(example, ways=example.ways[:6], blocks=example.blocks[:6],
                    power=replace(example.power, watts=Series(at_s=[0.0, 1.0], values={"total": [1.0, 2.0]})))  # fmt: skip
    run = msgspec.convert(poisoned(msgspec.to_builtins(small), words), Run)
    html = page([Entry(words, run, several=True), Entry("other", run, several=True)])
    found = Reader(html)
    assert {name for name, _ in found.seen} <= {
        "html", "head", "meta", "title", "style", "body", "a", "header", "h1", "h2", "h3", "p", "nav", "ul", "li", "main",
        "section", "div", "span", "small", "strong", "figure", "figcaption", "svg", "desc", "path", "text", "rect", "circle",
        "details", "summary", "table", "caption", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "pre", "code",
        "footer",
    }  # fmt: skip
    assert not any(name.startswith("on") or name in ("src", "style") for _, a in found.seen for name in a)
    assert "\x00" not in html
    assert "\u202e" not in html


def test_records_that_contradict_themselves_are_drawn_as_far_as_they_go(example):
    huge, ways = 1e300, list(example.ways[:4])
    crooked = Histogram(edges_ms=[2.0, 1.0], counts=[3, -1, 4])
    times = Distribution(frames=3, mean_ms=-5.0, p50_ms=huge, p95_ms=-huge, p99_ms=0.0, histogram=crooked)
    ways[0] = replace(ways[0], latency=times)
    ways[1] = replace(ways[1], latency=replace(ways[1].latency, histogram=Histogram(edges_ms=[0.0, huge], counts=[5])),
                      model=None, failed={"X": 10**18}, frames=-3)  # fmt: skip
    ways[2] = replace(ways[2], link="nowhere", median_ms=replace(ways[2].median_ms, value=huge, low=-huge, high=huge))
    ways[3] = replace(ways[3], bytes=replace(ways[3].bytes, packet_up=-7.0, socket_up=huge))
    blocks = [replace(b, way="nobody", start_ns=-(2**62), end_ns=2**62) for b in example.blocks[:3]]
    power = Power(
        watts=Series(at_s=[5.0, 1.0, 1.0, huge], values={"total": [1.0, None], "x": [None] * 4, "y": [huge] * 4})
    )
    assert read(replace(example, ways=ways, blocks=blocks, power=power, links=example.links * 2)).count("h2") == 10


def test_the_json_has_every_figure(example):
    found = msgspec.json.decode(msgspec.json.encode(data([Entry("a", example)])))
    assert (found["format"], found["schema"]) == ("narrowcast-report", 1)
    ways = {way["id"]: way for way in found["runs"][0]["ways"]}
    assert ways.keys() == {way.id for way in example.ways}
    split = ways["split-2@lte"]
    assert split["figures"]["latency_p50_ms"].keys() == {"value", "low", "high"}
    assert split["figures"]["agreement"]["value"] == 0.955
    assert split["stages"]["network"]["within"] == "wire"
    assert ways["local"]["figures"]["packet_up_bytes"] is None


def test_the_example_of_a_record_is_up_to_date():
    """If not: ``python tests/fixtures/runs/regenerate.py``."""
    path = Path(__file__).resolve().parents[3] / "fixtures" / "runs" / "example.json"
    (entry,) = read_entries([path])
    assert entry.run == parse_run(to_json(small_run()), "small")
    assert path.stat().st_size < 100_000


def test_the_documentation_has_every_key_of_the_json(example):
    words = (Path(__file__).resolve().parents[4] / "docs" / "report.md").read_text()
    run = data([Entry("a", example)])["runs"][0]
    way = run["ways"][0]
    stage = next(iter(way["stages"].values()))
    for key in [*run, *run["links"][0], *run["model"], *way, *way["figures"], *stage]:
        assert f"`{key}`" in words or f"`ways[].{key}`" in words, key
    comparison = compare(Entry("a", example), Entry("b", example)).as_dict()
    for key in [*comparison, *comparison["differences"][0]]:
        assert f"`{key}`" in words, key


def test_names_of_runs_are_told_apart(tmp_path):
    run = make_run()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_run(run, tmp_path / folder / "RUN.json")
    a, b = tmp_path / "a" / "RUN.json", tmp_path / "b" / "RUN.json"
    assert [entry.name for entry in read_entries([a])] == ["RUN"]
    assert len({entry.name for entry in read_entries([a, b])}) == 2
    assert len({entry.name for entry in read_entries([a, a])}) == 2
    with pytest.raises(RunError, match="9 runs are too many"):
        read_entries([a] * 9)


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    file = tmp_path / "RUN.json"
    with pytest.raises(RunError, match="cannot be read"):
        read_entries([file])
    with pytest.raises(RunError, match="cannot be read"):
        read_entries([tmp_path])
    file.write_bytes(to_json(make_run())[:-20])
    with pytest.raises(RunError, match="is no run record"):
        read_entries([file])
    monkeypatch.setattr("narrowcast.devices.report.entries.MAX_BYTES", 10)
    with pytest.raises(RunError, match="larger than a run record"):
        read_entries([file])


def test_every_colour_that_is_drawn_is_in_the_style_sheet(example):
    """A class that the style sheet does not know would be drawn black."""
    found = read(example)
    used = {word for name, a in found.seen for word in (a.get("class") or "").split() if "svg" not in name}
    coloured = set(re.findall(r"\.([a-z-]+) \{ --[cs]:", STYLE))
    drawn = {
        a["class"].split()[-1]
        for name, a in found.seen
        if name in ("path", "rect", "circle") and " " in a.get("class", "")
    }
    assert drawn - {"ring", "circle"} <= coloured | {"idle", "warm-up"}
    assert {"local", "image", "split", "s-network"} <= used


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_the_paper(scheme):
    """WCAG 2.2, 1.4.3 and 1.4.11: text 4.5 to 1, what is drawn 3 to 1."""
    colours = variables(STYLE, scheme)
    for name in ("ink", "soft", "accent", "good", "bad"):
        for paper in ("paper", "panel"):
            assert ratio(colours[name], colours[paper]) >= 4.5, (name, paper)
    series = ["local", "image", "split", "other"]
    stages = re.findall(r"\.s-[a-z]+ \{ --c: var\(--([a-z]+)\)", STYLE)
    assert len(stages) == 14
    for name in {*series, *stages, "edge"}:
        assert ratio(colours[name], colours["paper"]) >= 3, name
    for name in stages:
        assert ratio(colours["on-bar"], colours[name]) >= 4.5, name
    for shade in ("shade-idle", "shade-warm-up"):
        for name in series:
            assert ratio(colours[name], colours[shade]) >= 3, (name, shade)
