"""The board's side of a flash: Python 3.10 and its standard library alone, since nothing is installed there yet.

It is sent along as one zip file (:mod:`narrowcast.devices.flash.packing`) and decides everything that must not depend on a
connection: what was verified, what is switched, what is healthy, and when to go back.
"""
