"""Fixtures that several folders use."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

# Before torch is imported: tests run beside one another, with clients and servers in processes of their own. Networks here
# are so small that a second thread saves no time; on busy cores it waits, spinning, for the first one's ten times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore Ctrl-C, and so would every process that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from support import bundles

# Tests make millions of objects beside the libraries' own millions: Python would look through all of them again and again.
gc.freeze()
gc.set_threshold(20_000, 20, 50)

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the tests of the device's part run without it
    pass
else:  # properties hold on machines that stand still for a second, too
    settings.register_profile("narrowcast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("narrowcast")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_terminal_summary(terminalreporter):
    """Tables that tests have made (``record_property("table", ...)``), whether they passed or not."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, text in report.user_properties:
                if name == "table":
                    terminalreporter.section(report.nodeid)
                    terminalreporter.write_line(text)


@pytest.fixture(autouse=True)
def keys_folder(tmp_path, monkeypatch):
    """Every test has its own keys and caches; none touches the user's."""
    folder = tmp_path / "keys"
    monkeypatch.setenv("NARROWCAST_KEYS", str(folder))
    monkeypatch.setenv("NARROWCAST_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder for a server: one signed bundle, ``tiny``, and the key to trust."""
    folder = tmp_path_factory.mktemp("models")
    bundles.make().write(folder / "tiny.ncb")
    bundles.trusted_key().write(folder / "test.pub")
    return folder


@pytest.fixture
def tiny(tiny_folder):
    """The bundle of ``tiny_folder``, opened."""
    return bundles.open_made(tiny_folder / "tiny.ncb")


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory):
    """48 smooth pictures of 40 x 36 pixels, and something that is no picture."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for k in range(48):
        rough = Image.fromarray(random.integers(0, 256, (5, 5, 3)).astype(np.uint8))
        (folder / f"{k % 4}").mkdir(exist_ok=True)
        rough.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{k % 4}" / f"{k:02d}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def shared_data():
    """Real photographs and a real teacher, where they are."""
    if not (SHARED / "data" / "photos300" / "labels.csv").is_file():
        pytest.skip("the photographs (../shared/data) are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def timm():
    """timm, also where torchvision's binary does not fit this torch."""
    from timm_import import import_timm

    try:
        return import_timm()
    except ImportError as error:
        pytest.skip(f"timm, or torchvision, which it imports, is not installed: {error}")


@pytest.fixture(scope="session")
def recipe_for(photo_folder):
    """A function that gives a recipe for the small photographs and a small teacher, with some tables changed.

    A ``bottleneck`` with a preset is taken as it is.
    """
    from narrowcast.compiler.recipe import recipe_from

    networks = Path(__file__).parent / "support" / "networks.py"

    def make(**tables):
        mapping = {
            "teacher": {"model": f"{networks}:tiny"},
            "data": {"train": str(photo_folder), "holdout": 0.2},
            "cut": {"at": "stem"},
            "input": {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
            "bottleneck": {"encoder_macs": "1M", "levels": 3, "channels": 8, "stride": 4, "decoder_width": 16},
            "train": {"images": 240, "batch": 8},
        }
        for name, table in tables.items():
            merged = isinstance(table, dict) and "preset" not in table  # a preset has keys of its own
            mapping[name] = {**mapping.get(name, {}), **table} if merged else table
        return recipe_from(mapping, "test.toml", "test", networks.parent)

    return make


@pytest.fixture(scope="session")
def compiled(recipe_for, tmp_path_factory):
    """A really trained and exported bundle of the small teacher, made once: (result, folder of the work)."""
    from narrowcast.compiler.compile import compile as compile_recipe

    folder = tmp_path_factory.mktemp("compiled")
    return compile_recipe(recipe_for(), folder / "test.ncb", key=bundles.KEY, work=folder / "work"), folder
