"""The report: one or several run records as a page that needs no network, as JSON, or compared with one another.

``entries`` reads them, ``page`` puts the page together from the modules named after its sections, ``plots`` draws, and
``markup`` is the one way to make HTML or SVG, and escapes. ``compare`` and ``noise`` say what got worse.
"""
