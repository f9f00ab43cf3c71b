"""What a bundle's figures are measured on, and what is left of it where that fails."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from narrowcast.compiler.assemble import FIGURE_FRAMES, Assembly


def test_figures_are_of_images_from_all_that_are_held_out():
    """They lie class by class, and the first 256 would be those of a few."""
    assembly = Assembly.__new__(Assembly)
    assembly.recipe = SimpleNamespace(train=SimpleNamespace(seed=3))
    assembly.job = SimpleNamespace(held=np.arange(5000), frames=lambda rows: rows)
    rows = assembly._figure_frames()
    assert len(rows) == FIGURE_FRAMES
    assert (np.diff(rows) > 0).all()
    assert np.histogram(rows, 10, (0, 5000))[0].min() > 10
    assert (assembly._figure_frames() == rows).all()
    assembly.job.held = np.arange(7, 20)
    assert (assembly._figure_frames() == np.arange(7, 20)).all()
