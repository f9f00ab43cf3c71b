"""Packets that refer to frames which the server has answered; see ``docs/video.md``."""
