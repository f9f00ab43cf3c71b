"""The edge client as a service of a board: ``docs/daemon.md``."""
