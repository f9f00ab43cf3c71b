"""``narrowcast demo``: the whole path on rendered frames, on one machine, with nothing downloaded."""
