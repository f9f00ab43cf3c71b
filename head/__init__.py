"""The device's runtime: backends, session, link, client. Never needs torch."""
