"""Keys and key files."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from narrowcast.cli import main
from narrowcast.transport.bundle.signing import PublicKey, SecretKey, find_key, read_keys, trusted_keys
from narrowcast.transport.errors import BadSignatureError, KeyFileError
from narrowcast.transport.sealing import OpeningKey


def test_key_files_round_trip_and_the_secret_one_is_private(tmp_path):
    key = SecretKey.new("mé in Köln")
    key.write(tmp_path / "me.key")
    key.public.write(tmp_path / "me.pub")
    assert stat.S_IMODE((tmp_path / "me.key").stat().st_mode) == 0o600
    assert SecretKey.read(tmp_path / "me.key") == key
    assert PublicKey.read(str(tmp_path / "me.pub")) == key.public


def test_a_signature_is_good_for_its_message_and_key_only():
    key, other = SecretKey.new(), SecretKey.new()
    signature = key.sign(b"message")
    key.public.verify(b"message", signature)
    for public, message, bent in (
        (key.public, b"massage", signature),
        (other.public, b"message", signature),
        (key.public, b"message", signature[:-1]),
        (key.public, b"message", bytes(64)),
        (PublicKey(b"short"), b"message", signature),
    ):
        with pytest.raises(BadSignatureError):
            public.verify(message, bent)


def test_signatures_are_rfc_8032s():
    """RFC 8032 section 7.1, test 1: the key pair; the message carries our context, so only the public key is compared."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    expected = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert SecretKey(seed).public.raw.hex() == expected


def test_a_secret_key_is_not_overwritten(tmp_path):
    SecretKey.new().write(tmp_path / "a.key")
    with pytest.raises(KeyFileError, match="not overwritten"):
        SecretKey.new().write(tmp_path / "a.key")


@pytest.mark.parametrize("kind", [SecretKey, OpeningKey])
def test_a_full_disk_leaves_no_key_file_behind_and_an_old_public_key_as_it_was(tmp_path, monkeypatch, kind):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    key, public = kind.new("old"), tmp_path / "a.pub"
    key.public.write(public)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for one, path in ((kind.new("new"), tmp_path / "a.key"), (kind.new("new").public, public)):
            with pytest.raises(OSError, match=f"No space left on device: .*{path.name}'"):
                one.write(path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pub"]
    assert type(key.public).read(public) == key.public
    kind.new().write(tmp_path / "a.key")


@pytest.mark.parametrize("links", [True, False])
def test_a_secret_key_comes_whole_or_not_at_all(tmp_path, monkeypatch, links):
    """Also where the file system has no links; and what cannot be put in its place leaves nothing."""

    def link(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source))

    if not links:
        monkeypatch.setattr(os, "link", link)
    key = SecretKey.new("a")
    key.write(tmp_path / "a.key")
    with pytest.raises(KeyFileError, match=r"a\.key exists"):
        SecretKey.new().write(tmp_path / "a.key")
    assert SecretKey.read(tmp_path / "a.key") == key
    assert [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in tmp_path.iterdir()] == [("a.key", 0o600)]


def test_a_secret_key_that_others_can_read_is_refused(tmp_path):
    SecretKey.new().write(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        SecretKey.read(tmp_path / "a.key")


@pytest.mark.parametrize(
    "text", ["", "hello", "narrowcast-ed25519-public AAAA x", "narrowcast-ed25519-public !!! x", "é ü"]
)
def test_what_is_no_key_file(tmp_path, text):
    (tmp_path / "x.pub").write_text(text)
    with pytest.raises(KeyFileError, match=r"x\.pub is no"):
        PublicKey.read(tmp_path / "x.pub")


def test_the_kinds_are_not_mixed_up(tmp_path):
    key = SecretKey.new()
    key.write(tmp_path / "a.key")
    key.public.write(tmp_path / "a.pub")
    with pytest.raises(KeyFileError):
        PublicKey.read(tmp_path / "a.key")
    with pytest.raises(KeyFileError):
        SecretKey.read(tmp_path / "a.pub")
    with pytest.raises(KeyFileError, match="no key file"):
        PublicKey.read(tmp_path / "none.pub")


def test_trusted_keys(keys_folder):
    assert trusted_keys() == []
    key = SecretKey.new("a").public
    key.write(keys_folder / "trusted" / "a.pub")
    assert trusted_keys() == [key]
    assert find_key(key.raw, trusted_keys()) == key
    assert find_key(bytes(32), trusted_keys()) is None


def test_a_file_of_several_trusted_keys_counts_with_all_of_them(keys_folder, tmp_path, capsys):
    """While a signing key is exchanged for the next."""
    keys = [SecretKey.new("old").public, SecretKey.new("new").public]
    file = tmp_path / "both.pub"
    file.write_text("".join(f"{key.line}\n" for key in keys))
    assert read_keys(str(file)) == keys
    with pytest.raises(KeyFileError, match=r"both\.pub holds 2 keys; read_keys reads them all"):
        PublicKey.read(file)
    assert main(["keys", "trust", str(file)]) == 0
    assert trusted_keys(keys_folder) == keys
    assert main(["keys", "show"]) == 0
    shown = capsys.readouterr().out
    assert all(key.id in shown for key in keys)
    file.write_text(f"{keys[0].line}\n")
    assert main(["keys", "trust", str(file)]) == 1
    assert "is another key of that name" in capsys.readouterr().err
    assert trusted_keys(keys_folder) == keys
