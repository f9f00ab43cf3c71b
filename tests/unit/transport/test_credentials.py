"""A client's TLS files: what is wrong with them is said before anything is sent."""

from __future__ import annotations

import pytest
from support.fleet import Fleet

from narrowcast.transport.errors import CertificateError, ConfigError, KeyFileError, TokenError
from narrowcast.transport.rpc.channels import Address
from narrowcast.transport.rpc.credentials import ClientTls, client_tls, explain

SERVER = Address("192.0.2.7", 7433)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    fleet = Fleet(folder)
    return {path.name: path.read_bytes() for path in fleet.board().iterdir()} | {
        "other.key": (fleet.board("other") / "tls.key").read_bytes()
    }


@pytest.fixture
def board(made, tmp_path, monkeypatch):
    """A board's folder."""
    monkeypatch.delenv("NARROWCAST_TOKEN", raising=False)
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_bytes(made[name])
    (tmp_path / "tls.key").chmod(0o600)
    return tmp_path


def test_a_sound_folder_is_taken(board):
    assert client_tls(board).certificate == board / "tls.crt"
    assert client_tls(None) is None


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\xff" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
@pytest.mark.parametrize("name", ["tls.crt", "ca.crt"])
def test_garbage_is_no_certificate(board, name, content):
    (board / name).write_bytes(content)
    with pytest.raises(CertificateError, match=rf"{name} holds no"):
        client_tls(board)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_garbage_is_no_key(board, content):
    (board / "tls.key").write_bytes(content)
    with pytest.raises((KeyFileError, CertificateError), match=r"tls\.key holds no private key"):
        client_tls(board)


def test_another_key(board, made):
    (board / "tls.key").write_bytes(made["other.key"])
    with pytest.raises(CertificateError, match=r"tls\.key is not the key of .*tls\.crt"):
        client_tls(board)


def test_a_key_that_others_can_read(board):
    (board / "tls.key").chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        client_tls(board)


@pytest.mark.parametrize(
    ("name", "told"), [("ca.crt", "no CA "), ("tls.crt", "no certificate "), ("tls.key", "no key ")]
)
def test_a_missing_file(board, name, told):
    (board / name).unlink()
    with pytest.raises((CertificateError, KeyFileError), match=told):
        client_tls(board)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(CertificateError, match="keys issue makes a folder with all of it"):
        client_tls(tmp_path / "none")


def test_a_comment_in_any_script_is_no_damage(board):
    """As the server's side, and TLS libraries, take it."""
    authority = board / "ca.crt"
    pem = authority.read_bytes()
    authority.write_bytes("# Ger\u00e4tezertifikate\n".encode() + pem)
    ClientTls.from_folder(board).check()
    authority.write_bytes(pem.replace(b"\nM", b"\n\xc3", 1))
    with pytest.raises(CertificateError, match="damaged"):
        ClientTls.from_folder(board).check()


def test_a_certificate_without_its_key(board):
    with pytest.raises(ConfigError, match="goes with its key"):
        ClientTls(board / "ca.crt", board / "tls.crt").check()


def test_tokens_go_over_tls_only(board, monkeypatch):
    with pytest.raises(TokenError, match="over TLS only"):
        client_tls(None, token_file=board / "token")
    with pytest.raises(ConfigError, match="--tls-name"):
        client_tls(None, server_name="tail.example")
    monkeypatch.setenv("NARROWCAST_TOKEN", "not a token")
    with pytest.raises(TokenError, match="holds no token") as caught:
        client_tls(board)
    assert "not a token" not in str(caught.value)


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK", "of another CA than"),
        ("CERTIFICATE_VERIFY_FAILED: self signed certificate: OK", "of another CA than"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "has expired (the clock here says"),
        (
            "CERTIFICATE_VERIFY_FAILED: unsupported certificate purpose: OK",
            "not accepted: unsupported certificate purpose",
        ),
        ("Hostname Verification Check failed.", "is not for tail.example; issue it with --host tail.example"),
        ("SSL_ERROR_SSL: WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("Failed to create security handshaker.", "is it a CA's?"),
        ("Socket closed", "it is of a CA that the server does not trust"),
    ],
)
def test_failed_handshakes_are_explained(board, details, told):
    assert told in explain(SERVER, "tail.example", client_tls(board), details)


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\n"])
@pytest.mark.parametrize("name", ["tls.crt", "ca.crt"])
def test_files_that_are_being_replaced_are_told_of(board, name, content):
    tls = client_tls(board)
    (board / name).unlink()
    if content is not None:
        (board / name).write_bytes(content)
    assert "as it does with a certificate" in explain(SERVER, "", tls, "Socket closed")


def test_a_clock_in_1970_is_told_of_first(board, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 60.0)
    line = explain(SERVER, "", client_tls(board), "CERTIFICATE_VERIFY_FAILED: certificate is not yet valid: OK")
    assert line == (
        "the clock says 1970-01-01 00:01 UTC, at which no certificate counts; set it (NTP), or wait until it is set"
    )


def test_other_troubles_are_left_as_they_are(board):
    assert explain(SERVER, "", client_tls(board), "Connection refused") is None
    assert explain(SERVER, "", None, "Connection refused") is None
    assert "may be a server that wants TLS" in explain(SERVER, "", None, "Socket closed")
