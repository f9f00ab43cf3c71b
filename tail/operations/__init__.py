"""What operators see of the server: figures, traces, log lines, health, a page.

:class:`~narrowcast.tail.operations.tally.Tally` counts; ``prometheus``, ``status`` and ``history`` read it.
Everything that is told to an observer runs on the event loop for each frame, so it adds to plain integers and leaves the
rest to whoever asks.
"""
