"""Many boards: an inventory, canaries before waves, a threshold at which to stop, and a state that a rerun goes on from.

The rollout itself (:mod:`.rollout`) knows boards only as names behind a :class:`.flasher.Flasher`.
"""
