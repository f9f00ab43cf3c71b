"""The bundle: one signed file with everything about a compiled model (``docs/bundle-format.md``)."""

from __future__ import annotations

from narrowcast.transport.bundle.manifest import Manifest, OutputSpec, Part, TailSpec
from narrowcast.transport.bundle.reader import Bundle
from narrowcast.transport.bundle.signing import PublicKey, SecretKey, keys_folder, read_keys, trusted_keys
from narrowcast.transport.bundle.writer import describe_part, sign_bundle, write_bundle, write_subset

__all__ = [
    "Bundle",
    "Manifest",
    "OutputSpec",
    "Part",
    "PublicKey",
    "SecretKey",
    "TailSpec",
    "describe_part",
    "keys_folder",
    "read_keys",
    "sign_bundle",
    "trusted_keys",
    "write_bundle",
    "write_subset",
]
