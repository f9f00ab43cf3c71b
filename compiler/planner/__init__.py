"""What pays: where to cut, with which trunk, and whether to split at all. ``docs/planning.md`` says how it reckons."""
