"""Rate control: at which level a frame is sent, or whether at all. See ``docs/rate-control.md``."""
