"""Python's collector of cyclic garbage, held back where it costs and finds nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """While a graph is built: millions of objects are made, nearly all of them to stay as long as the graph.

    The collector starts again and again for their number alone; looking through all that is there, torch's and the
    exporter's own objects included, is a tenth to a quarter of what an export takes. Nested, the outermost lets it go on.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
