"""A real Chromium without a window, spoken to by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

_QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
_QUIET += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
_TROUBLE = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}


class Page:
    """One tab.

    Attributes:
        trouble: whatever came to its console: errors, warnings, messages.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last = 0
        self._session: str | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.trouble: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def open(self) -> None:
        """Makes the tab."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; its result."""
        self._last += 1
        number = self._last
        self._answers[number] = asyncio.get_running_loop().create_future()
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        return await asyncio.wait_for(self._answers[number], 60)

    async def js(self, expression: str) -> Any:
        """The value of an expression."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, what: str, seconds: float = 30.0) -> Any:
        """Waits until an expression is true; its value."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not (value := await self.js(expression)):
            assert asyncio.get_running_loop().time() < deadline, f"after {seconds} s still not: {what}"
            await asyncio.sleep(0.05)
        return value

    async def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Sets the size of the window and the colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def picture(self, path: Path) -> Path:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))
        return path

    async def _read(self) -> None:
        async for message in self._socket:
            data = message.json()
            if "id" in data:
                waiting = self._answers.pop(data["id"])
                if "error" in data:
                    waiting.set_exception(AssertionError(f"Chromium: {data['error']}"))
                elif not waiting.done():
                    waiting.set_result(data["result"])
            elif data["method"] in _TROUBLE:
                self.trouble.append(str(data["params"]))


def brightness(picture: Path) -> float:
    """The median of a picture, 0 (black) to 255."""
    with Image.open(picture) as image:
        return float(np.median(np.asarray(image.convert("L"))))


@contextlib.asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """Chromium with one empty tab; skips where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    process = await asyncio.create_subprocess_exec(
        chromium, *_QUIET, f"--user-data-dir={profile}", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        assert process.stderr is not None
        address = None
        while address is None:
            line = await asyncio.wait_for(process.stderr.readline(), 60)
            assert line, "Chromium ended before it listened"
            address = re.search(r"ws://\S+", line.decode(errors="replace"))
        async with aiohttp.ClientSession() as session, session.ws_connect(address[0], max_msg_size=0) as socket:
            page = Page(socket)
            await page.open()
            yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
