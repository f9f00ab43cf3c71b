"""The report in a real browser: from a file, without a network, wide and narrow, light, dark and on paper."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from support.browser import brightness, browser
from support.example_run import example_run

from narrowcast.devices.profile.schema import write_run

# Every drawn plot that is seen has marks, bars or lines, and none of its text lies outside of it.
_DRAWN = """
(() => {
  const seen = [...document.querySelectorAll('figure svg[role=img]')].filter(svg => svg.getBoundingClientRect().width > 0);
  const empty = seen.filter(svg => !svg.querySelector('.mark, .bar, .line'));
  const outside = seen.flatMap(svg => {
    const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(t => {
      const r = t.getBoundingClientRect();
      return r.left < box.left - 2 || r.right > box.right + 2 || r.top < box.top - 2 || r.bottom > box.bottom + 2;
    }).map(t => t.textContent);
  });
  const smallest = Math.min(...seen.map(svg => svg.querySelector('text').getBoundingClientRect().height));
  return {seen: seen.length, empty: empty.length, outside, smallest};
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The example's page, made by the command."""
    folder = tmp_path_factory.mktemp("report")
    write_run(example_run(), folder / "RUN.json")
    command = [sys.executable, "-m", "narrowcast", "report", "RUN.json", "-o", "page.html"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("Splitting pays on the real link")
    assert "page.html is written" in done.stderr
    assert (folder / "page.json").stat().st_size > 10_000
    return folder / "page.html"


async def test_a_browser_shows_it_wide_narrow_dark_and_on_paper(report, tmp_path):
    async with browser(tmp_path / "profile") as page:
        await page.call("Network.enable")
        await page.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        pictures = {}
        for width, scheme in ((1100, "light"), (1100, "dark"), (360, "light")):
            await page.look(width, 900, scheme)
            await page.call("Page.navigate", url=f"file://{report}")
            await page.until("document.readyState === 'complete' && !!document.querySelector('footer')", "it is loaded")
            drawn = await page.js(_DRAWN)
            assert drawn["seen"] >= 10
            assert drawn["empty"] == 0
            assert drawn["outside"] == []
            assert drawn["smallest"] >= 11  # pixels: letters of 9 and more
            overflow = await page.js("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow <= 0, f"at {width} px the page is {overflow} px too wide"
            pictures[width, scheme] = brightness(await page.picture(tmp_path / f"{width}-{scheme}.png"))
        assert pictures[1100, "light"] > 200 > 80 > pictures[1100, "dark"]
        await check_keyboard(page)
        paper = base64.b64decode((await page.call("Page.printToPDF", printBackground=True))["data"])
        assert paper.startswith(b"%PDF")
        assert page.trouble == []


async def check_keyboard(page) -> None:
    """The tab key reaches the first link, folded tables open by a key, and wide tables can be scrolled by one."""
    await page.js("document.activeElement.blur(), window.scrollTo(0, 0)")
    await press(page, "Tab")
    assert await page.js("document.activeElement.className") == "skip"
    assert await page.js("document.activeElement.getBoundingClientRect().left >= 0")  # it is seen once it has the focus
    await page.js("document.querySelector('summary').focus()")
    await press(page, "Enter")
    assert await page.js("document.querySelector('details').open")
    wide = "document.querySelector('details .scroll')"
    await page.js(f"{wide}.focus()")
    assert await page.js(f"document.activeElement === {wide}")


async def press(page, key: str) -> None:
    code = {"Tab": 9, "Enter": 13}[key]
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        extra = text if kind == "keyDown" else {}
        await page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)
