"""The profiler: local, send the image, split, side by side, really run; its record is what reports are made from."""
