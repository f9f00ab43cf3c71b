"""Plots as SVG, drawn by hand: each one twice, wide and narrow, so that its letters are legible on a phone too.

Why not matplotlib: the report is made wherever a run record is read, a board included, and needs nothing but NumPy so. An
SVG of our own also follows the page's colours, light or dark or printed, has a title, a description and a tooltip on each
mark, and takes a few kilobytes.
"""
