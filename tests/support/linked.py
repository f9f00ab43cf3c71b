"""Frames through a client, and whether each had its own answer."""

from __future__ import annotations

import asyncio

from narrowcast.head.client import AsyncClient
from support import bundles

FRAMES = bundles.random_frames(40)


async def all_of(client: AsyncClient, count: int) -> list:
    """Results of the first frames, as they come."""
    results = []
    tasks = [asyncio.create_task(client.infer(frame)) for frame in FRAMES[:count]]
    for task in tasks:
        task.add_done_callback(lambda done: results.append(done.result()))
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    return results


def check(results, count: int) -> None:
    """Each frame was answered once, with its own answer."""
    assert sorted(result.frame_id for result in results) == list(range(count))
    for result in results:
        assert (result.error, result.status) == (None, "OK")
        assert result.outputs["output"].tolist() == [result.frame_id] * 3
