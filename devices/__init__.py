"""Boards: targets, power rails, stage times."""
