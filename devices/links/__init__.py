"""Emulated links: a real client and a real server with a link of one's choice between them. See ``docs/links.md``."""

from narrowcast.devices.links.emulate import Emulation, emulated
from narrowcast.devices.links.link import Link, link_names, load_link, parse_link

__all__ = ["Emulation", "Link", "emulated", "link_names", "load_link", "parse_link"]
