"""Which release this is. ``narrowcast`` itself is not imported here: it leads to everything else."""

from importlib.metadata import version

VERSION = version("narrowcast")
