"""What a bundle's figures are measured on, and what is left of it where that fails."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest

from narrowcast.compiler.assemble import FIGURE_FRAMES, Assembly
from narrowcast.transport.files import forget_partials

NOBODY = 2**22 + 1  # no process has this number


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_draft_goes_where_measuring_fails(tmp_path, tiny, monkeypatch, error):
    def fail(draft, verified):
        (seen,) = tmp_path.iterdir()
        killed = seen.with_name(seen.name.replace(str(os.getpid()), str(NOBODY)))
        killed.write_bytes(seen.read_bytes())
        assert forget_partials(tmp_path) == [killed], (
            "the next start clears away what a killed one has left, and no other"
        )
        raise error

    assembly = Assembly.__new__(Assembly)
    assembly.job = SimpleNamespace(folder=tmp_path)
    contents = {part.name: tiny.read(part.kind, part.precision) for part in tiny.manifest.parts}
    assembly.parts = SimpleNamespace(contents=contents)
    monkeypatch.setattr(assembly, "_costs", dict)
    monkeypatch.setattr(assembly, "_figures", fail)
    with pytest.raises(error):
        assembly._draft_figures(tiny.manifest, None)
    assert not list(tmp_path.iterdir())
