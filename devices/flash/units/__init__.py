"""Units that flash installs on boards with systemd."""
