"""The fleet's CA: what it issues, rotates and revokes, and what it does not take."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.fleet import Fleet

from narrowcast.cli import main
from narrowcast.transport.errors import (
    CertificateError,
    KeyFileError,
    MissingDependencyError,
    RevocationError,
    TokenError,
)
from narrowcast.transport.pki import certificates as pki
from narrowcast.transport.pki.authority import Authority
from narrowcast.transport.pki.names import is_name
from narrowcast.transport.pki.private import read_private
from narrowcast.transport.pki.revoked import HEADER, Revoked, parse_revoked, write_revoked
from narrowcast.transport.pki.tokens import add_token, digest_of, parse_tokens, read_token, read_tokens, remove_tokens

DAY = dt.timedelta(days=1)


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def certificate_in(folder):
    return pki.read_certificates((folder / "tls.crt").read_bytes(), "tls.crt")[0]


class TestIssuing:
    def test_only_keys_are_secret(self, fleet):
        fleet.board()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (fleet.folder / "board-7").iterdir()}
        assert set(modes) == {"tls.crt", "tls.key", "ca.crt"}
        assert modes["tls.key"] == 0
        assert stat.S_IMODE((fleet.folder / "ca" / "authority.pem").stat().st_mode) == 0o600

    def test_what_boards_check_counts_from_1970_and_what_servers_check_from_yesterday(self, fleet):
        server, board = certificate_in(fleet.server()), certificate_in(fleet.board())
        assert fleet.authority.root.certificate.not_valid_before_utc.year == 1970
        assert server.not_valid_before_utc.year == 1970
        assert DAY <= pki.now() - board.not_valid_before_utc < 1.1 * DAY
        assert 700 * DAY < server.not_valid_after_utc - pki.now() < 760 * DAY

    def test_a_server_is_no_client_and_a_client_no_server(self, fleet):
        def usage(folder):
            return list(certificate_in(folder).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

        assert usage(fleet.server()) == [ExtendedKeyUsageOID.SERVER_AUTH]
        assert usage(fleet.board()) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert pki.host_names(certificate_in(fleet.server())) == ["localhost", "127.0.0.1"]
        assert pki.client_name(certificate_in(fleet.board())) == "board-7"

    @pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "x" * 65, "a b", "a\n", "ä", ".", "..", "a\0"])
    def test_what_is_no_name(self, fleet, name):
        assert not is_name(name)
        with pytest.raises(CertificateError, match="is no name"):
            fleet.board(name, out=fleet.folder / "out")
        assert not (fleet.folder / "out").exists()

    @pytest.mark.parametrize("host", ["http://a", "a:7433", "a/b", "a b", "", "ä.example", "a..b", "x" * 64])
    def test_what_is_no_host(self, fleet, host):
        with pytest.raises(CertificateError, match="neither an IP address nor a host name"):
            fleet.server(hosts=[host])

    def test_no_certificate_outlives_its_ca(self, tmp_path):
        authority = Authority.create(tmp_path / "ca", days=10)
        authority.issue("board-7", tmp_path / "board-7")
        assert (
            certificate_in(tmp_path / "board-7").not_valid_after_utc <= authority.root.certificate.not_valid_after_utc
        )

    def test_the_first_ones_at_once_make_one_authority(self, tmp_path, keys_folder):
        words = [["keys", "issue", f"board-{k}", "--out", str(tmp_path / f"board-{k}")] for k in range(6)]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(main, words)) == [0] * 6
        bundle = Authority.open(keys_folder / "ca").bundle
        assert [(tmp_path / f"board-{k}" / "ca.crt").read_bytes() for k in range(6)] == [bundle] * 6

    def test_two_at_once_are_both_listed(self, fleet):
        names = [f"board-{k}" for k in range(6)]
        threads = [
            threading.Thread(
                target=lambda n: Authority.open(fleet.folder / "ca").issue(n, fleet.folder / n), args=[name]
            )
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(entry.name for entry in fleet.authority.issued()) == names


def test_a_clients_name_is_never_an_address():
    key = pki.make_root("ca", 9).key

    def without_a_common_name(*names: x509.GeneralName) -> x509.Certificate:
        builder = pki._builder(x509.Name([]), x509.Name([]), key, pki.BEGINNING, pki.now() + DAY)
        return builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, hashes.SHA256())

    address = x509.IPAddress(ipaddress.ip_address("10.0.0.7"))
    assert pki.client_name(without_a_common_name(address, x509.DNSName("board-7"))) == "board-7"
    with pytest.raises(CertificateError, match="carries no name"):
        pki.client_name(without_a_common_name(address))


@pytest.mark.filterwarnings("ignore:Parsed a")
def test_flipped_bits_in_a_certificate_are_errors_or_another_certificate_never_a_crash(fleet):
    fleet.board()
    text = (fleet.folder / "board-7" / "tls.crt").read_bytes()
    raw = bytearray(base64.b64decode(b"".join(text.splitlines()[1:-1])))
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        bent = bytearray(raw)
        for place in random.integers(0, len(raw), 2):
            bent[place] ^= 1 << int(random.integers(8))
        pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(bent)) + b"-----END CERTIFICATE-----\n"
        try:
            certificate = pki.read_certificates(pem, "bent")[0]
            assert is_name(pki.client_name(certificate))
            pki.host_names(certificate)
        except CertificateError:
            refused += 1
    assert refused > 200


class TestTheCa:
    def test_it_is_made_once(self, fleet):
        with pytest.raises(CertificateError, match="keys rotate makes the next one"):
            Authority.create(fleet.folder / "ca")

    def test_none_is_told_so(self, tmp_path):
        with pytest.raises(CertificateError, match="keys ca makes one"):
            Authority.open(tmp_path)

    @pytest.mark.parametrize(
        "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
    )
    def test_a_damaged_one_is_told_so(self, fleet, content):
        path = fleet.folder / "ca" / "authority.pem"
        path.write_bytes(content)
        with pytest.raises((KeyFileError, CertificateError), match=r"authority\.pem"):
            Authority.open(fleet.folder / "ca")

    def test_one_that_others_can_read_is_not_used(self, fleet):
        (fleet.folder / "ca" / "authority.pem").chmod(0o644)
        with pytest.raises(KeyFileError, match="chmod 600"):
            Authority.open(fleet.folder / "ca")

    def test_a_rotation_keeps_both_and_drops_the_old_one_when_told(self, fleet):
        authority, old = fleet.authority, fleet.authority.id
        fleet.board("a")
        fleet.board("b")
        authority.rotate()
        assert len(pki.read_certificates(authority.bundle, "bundle")) == 2
        assert authority.id != old
        with pytest.raises(CertificateError, match="under way"):
            authority.rotate()
        fleet.board("a")
        chain = pki.read_certificates((fleet.folder / "a" / "tls.crt").read_bytes(), "chain")
        assert chain[1].issuer == authority.previous.subject
        assert [entry.name for entry in authority.left_behind()] == ["b"]
        assert [entry.name for entry in authority.finish()] == ["b"]
        assert len(pki.read_certificates(authority.bundle, "bundle")) == 1
        with pytest.raises(CertificateError, match="no rotation is under way"):
            authority.finish()


class TestRevocation:
    def test_all_of_a_names_certificates_are_listed_and_a_later_one_is_not(self, fleet):
        fleet.board()
        fleet.board()
        assert len(fleet.authority.revoke("board-7")) == 2
        assert fleet.authority.revoke("board-7") == []
        fleet.board()
        listed = parse_revoked(fleet.authority.revocation_list(), "list")
        assert {entry.name for entry in listed.values()} == {"board-7"}
        assert certificate_in(fleet.folder / "board-7").serial_number not in listed
        assert len(listed) == 2

    def test_one_that_has_a_successor_is_revoked_alone(self, fleet):
        fleet.board()
        fleet.board()
        old, new = (entry for entry in fleet.authority.issued() if entry.name == "board-7")
        with pytest.raises(CertificateError, match="board-7 has no certificate with the serial 'beef'"):
            fleet.authority.revoke("board-7", "beef")
        assert [entry.serial for entry in fleet.authority.revoke("board-7", old.serial.upper())] == [old.serial]
        listed = parse_revoked(fleet.authority.revocation_list(), "list")
        assert set(listed) == {int(old.serial, 16)}
        assert new.serial != old.serial

    def test_an_unknown_name_gets_the_nearest(self, fleet):
        fleet.board()
        with pytest.raises(CertificateError, match="did you mean 'board-7'"):
            fleet.authority.revoke("board7")

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff\xfe",
            b"garbage\n",
            HEADER.encode(),
            f"{HEADER}\nxyz board-7 now\n".encode(),
            f"{HEADER}\n12\n".encode(),
        ],
    )
    def test_half_a_list_is_none(self, data):
        with pytest.raises(RevocationError, match=r"list\.txt is no revocation list"):
            parse_revoked(data, "list.txt")

    def test_round_trip(self):
        entries = [Revoked(2**158 + 1, "a", "2026-01-01T00:00:00Z"), Revoked(7, "b", "2026-01-02T00:00:00Z")]
        assert list(parse_revoked(write_revoked(entries), "list").values()) == entries


class TestTokens:
    def test_only_hashes_are_kept_and_each_finds_its_name(self, tmp_path):
        file = tmp_path / "tokens.txt"
        tokens = {name: add_token(file, name) for name in ("a", "b")}
        table = read_tokens(file)
        assert {name: table.find(digest_of(token)) for name, token in tokens.items()} == {"a": "a", "b": "b"}
        assert table.find(digest_of("nct_" + "x" * 43)) is None
        assert not any(token in file.read_text() for token in tokens.values())
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_several_of_one_name_go_together(self, tmp_path):
        file = tmp_path / "tokens.txt"
        add_token(file, "a")
        add_token(file, "a")
        kept = add_token(file, "b")
        assert remove_tokens(file, "a") == 2
        assert [entry.name for entry in read_tokens(file).entries] == ["b"]
        assert read_tokens(file).find(digest_of(kept)) == "b"
        with pytest.raises(TokenError, match="no token of 'a'.*those of: b"):
            remove_tokens(file, "a")

    def test_several_at_once_lose_none_and_bring_none_back(self, tmp_path):
        file = tmp_path / "tokens.txt"
        names = [f"board-{k}" for k in range(12)]
        for name in names[:6]:
            add_token(file, name)
        with ThreadPoolExecutor(12) as pool:
            list(
                pool.map(
                    lambda job: job[0](file, job[1]), zip([remove_tokens] * 6 + [add_token] * 6, names, strict=True)
                )
            )
        assert sorted(entry.name for entry in read_tokens(file).entries) == sorted(names[6:])

    def test_a_pasted_token_is_refused_and_not_shown(self):
        secret = "nct_" + "s" * 43
        with pytest.raises(TokenError, match="line 2") as caught:
            parse_tokens(f"# x\n{secret}\n".encode(), "tokens.txt")
        assert secret not in str(caught.value)

    @pytest.mark.parametrize("data", [b"\xff\n", b"a/b sha256:" + b"0" * 64 + b"\n", b"a sha256:00\n", b"a b c\n"])
    def test_what_is_no_table(self, data):
        with pytest.raises(TokenError, match=r"tokens\.txt(, line 1:?)? is no |tokens\.txt, line 1: 'a/b' is no name"):
            parse_tokens(data, "tokens.txt")

    def test_half_a_table_is_none_and_one_without_tokens_is_one(self, tmp_path):
        """A copy that is under way empties the file first: nobody's token is revoked by that."""
        file = tmp_path / "tokens.txt"
        add_token(file, "a")
        whole = file.read_bytes()
        for part in (b"", whole[:10], whole[:-1]):
            with pytest.raises(TokenError, match=r"tokens\.txt is no whole file of tokens: it"):
                parse_tokens(part, "tokens.txt")
        remove_tokens(file, "a")
        assert read_tokens(file).entries == []

    def test_a_clients_file_holds_one_and_is_private(self, tmp_path):
        file = tmp_path / "token"
        file.touch(mode=0o600)
        with pytest.raises(TokenError, match="holds no token"):
            read_token(file)
        token = add_token(tmp_path / "tokens.txt", "a")
        file.write_text(token + "\n")
        assert read_token(file) == token
        file.chmod(0o644)
        with pytest.raises(KeyFileError, match="can be read by others; chmod 600"):
            read_token(file)


def test_a_secret_that_is_no_file_or_endless(tmp_path):
    with pytest.raises(KeyFileError, match="no key"):
        read_private(tmp_path / "none", "key")
    (tmp_path / "big").write_bytes(bytes(1024 * 1024 + 1))
    (tmp_path / "big").chmod(0o600)
    with pytest.raises(KeyFileError, match="larger than"):
        read_private(tmp_path / "big", "key")


class TestCommands:
    def test_rotation_by_hand(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        for words in ("issue tail --host localhost", "issue board-7", "rotate"):
            assert main(["keys", *words.split()]) == 0
        assert "narrowcast keys issue tail --host localhost\n" in capsys.readouterr().out
        assert main(["keys", "rotate", "--finish"]) == 1
        assert "2 have no certificate of the new CA yet (tail, board-7)" in capsys.readouterr().err
        for words in ("issue tail --host localhost", "revoke board-7 --out tail", "rotate --finish", "ca --out public"):
            assert main(["keys", *words.split()]) == 0
        assert "boards look at no list" not in capsys.readouterr().err
        assert "board-7" in (tmp_path / "tail" / "revoked.txt").read_text()
        capsys.readouterr()
        assert main(["keys", "show"]) == 0
        shown = capsys.readouterr().out
        assert "of a CA that is dropped" in shown
        assert "counts" in shown
        assert len(pki.read_certificates((tmp_path / "public" / "ca.crt").read_bytes(), "ca.crt")) == 1
        assert main(["keys", "revoke", "tail"]) == 0
        assert "narrowcast keys rotate" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words",
        [
            ["rotate", "--force"], ["rotate", "--finish", "--days", "9"], ["ca", "--out", "public", "--days", "9"],
            ["revoke", "board-7", "--tokens", "tokens.txt", "--out", "tail"],
        ],
    )  # fmt: skip
    def test_options_that_would_do_nothing(self, tmp_path, monkeypatch, capsys, words):
        monkeypatch.chdir(tmp_path)
        for made in (["issue", "board-7"], ["token", "board-7", "--tokens", "tokens.txt"]):
            assert main(["keys", *made]) == 0
        before = (tmp_path / "keys" / "ca" / "authority.pem").read_bytes(), (tmp_path / "tokens.txt").read_bytes()
        assert main(["keys", *words]) == 1
        assert words[-2 if words[-1] in ("9", "tail") else -1] in capsys.readouterr().err
        after = (tmp_path / "keys" / "ca" / "authority.pem").read_bytes(), (tmp_path / "tokens.txt").read_bytes()
        assert before == after

    def test_tokens(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["keys", "token", "board-7", "--tokens", "tokens.txt", "--out", "token"]) == 0
        assert capsys.readouterr().out == ""
        assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
        assert main(["keys", "token", "board-7", "--tokens", "tokens.txt"]) == 0
        printed = capsys.readouterr().out.strip()
        table = read_tokens(tmp_path / "tokens.txt")
        assert table.find(digest_of(printed)) == table.find(digest_of(read_token(tmp_path / "token"))) == "board-7"
        assert main(["keys", "token", "x", "--tokens", "tokens.txt", "--out", "token"]) == 1
        assert main(["keys", "revoke", "board-7", "--tokens", "tokens.txt"]) == 0
        assert "2 tokens revoked" in capsys.readouterr().out

    def test_without_cryptography_the_package_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cryptography", None)
        monkeypatch.delitem(sys.modules, "narrowcast.transport.pki.certificates")
        with pytest.raises(MissingDependencyError, match=r"cryptography.*narrowcast\[tls\]"):
            import importlib

            importlib.import_module("narrowcast.transport.pki.certificates")

    @pytest.mark.parametrize("words", [["ca"], ["issue", "board-7"], ["rotate"]])
    def test_days_have_an_upper_end_that_no_calendar_breaks_on(self, tmp_path, monkeypatch, capsys, words):
        monkeypatch.chdir(tmp_path)
        if words == ["rotate"]:
            assert main(["keys", "ca"]) == 0
        with pytest.raises(SystemExit) as ended:
            main(["keys", *words, "--days", "36501"])
        assert ended.value.code == 2
        assert "argument --days: 36501 is more than 36500" in capsys.readouterr().err
        assert main(["keys", *words, "--days", "36500"]) == 0
