"""Sealed boxes and their key files."""

from __future__ import annotations

import pytest

from narrowcast.transport.bundle import SecretKey
from narrowcast.transport.errors import KeyFileError, SealError
from narrowcast.transport.sealing import OpeningKey, SealingKey


def test_what_is_sealed_opens_with_the_secret_key_alone(tmp_path):
    OpeningKey.new("auditor").write(tmp_path / "a.key")
    key = OpeningKey.read(tmp_path / "a.key")
    key.public.write(tmp_path / "a.key.pub")
    public = SealingKey.read(tmp_path / "a.key.pub")
    assert (public.id, public.name) == (key.public.id, "auditor")
    sealed = public.seal(b"frame")
    assert len(sealed) == len(b"frame") + 48
    assert sealed != public.seal(b"frame")
    assert key.open(sealed) == b"frame"
    for wrong in (sealed[:-1], sealed[:10], b"", bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(SealError, match="damaged"):
            key.open(wrong)
    with pytest.raises(SealError, match="another key"):
        OpeningKey.new().open(sealed)


def test_key_files_are_kept_apart_and_safe(tmp_path):
    key = OpeningKey.new()
    key.write(tmp_path / "a.key")
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyFileError, match="not overwritten"):
        key.write(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        OpeningKey.read(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o600)
    with pytest.raises(KeyFileError, match="no narrowcast-x25519-public key"):
        SealingKey.read(tmp_path / "a.key")
    SecretKey.new().write(tmp_path / "signing")
    with pytest.raises(KeyFileError, match="no narrowcast-x25519-secret key"):
        OpeningKey.read(tmp_path / "signing")
    with pytest.raises(KeyFileError, match="no key file"):
        OpeningKey.read(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="is no key file"):
        SealingKey.read(tmp_path / "other")
