"""What things are called: clients and servers, and the files of a TLS folder."""

from __future__ import annotations

import re

NAME_RULE = "1 to 64 letters, digits, '.', '_', '-' or '@', beginning with a letter or digit"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)

# As in Kubernetes' secrets of type kubernetes.io/tls, which cert-manager fills: such a mount is a TLS folder as it is.
CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE = "tls.crt", "tls.key", "ca.crt"
REVOKED_FILE = "revoked.txt"


def is_name(name: str) -> bool:
    """Whether this is a name: names reach logs, metrics and settings, and must be harmless in all of them."""
    return _NAME.fullmatch(name) is not None
