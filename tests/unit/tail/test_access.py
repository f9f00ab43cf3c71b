"""The gate: rates, limits, files that change, and a log that nobody can fill. On the network: integration/test_tls.py."""

from __future__ import annotations

import os

import pytest
from support.fleet import Fleet, write

from narrowcast.cli import main
from narrowcast.tail.access import OpenGate, check_listen, host_of
from narrowcast.tail.access_callers import ByAddress, ByCertificate
from narrowcast.tail.access_files import Watched
from narrowcast.tail.access_gate import AccessGate, RefusalLog
from narrowcast.tail.access_limits import Bucket, ClientLimits, Limits, RateLimiter, read_limits
from narrowcast.tail.access_tls import ServerFiles, ServerTls, read_authorities
from narrowcast.tail.errors import AccessError, ListenError
from narrowcast.tail.frame import Priority, refusal
from narrowcast.tail.opening import rate_refusal
from narrowcast.tail.seldom import Seldom
from narrowcast.transport.errors import CertificateError, ConfigError, KeyFileError
from narrowcast.transport.packet import CodecId, Packet
from narrowcast.transport.pki.authority import Authority
from narrowcast.transport.pki.certificates import certificate_pem, cross_sign, make_leaf, make_root
from narrowcast.transport.rpc.channels import parse_address


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def gate_with(clock, **limits):
    found = ClientLimits(**limits)
    return AccessGate(ByAddress(), Watched([], lambda: found, "limits"), clock=clock)


class TestRates:
    def test_one_seconds_worth_at_once_and_then_the_rate(self, clock):
        gate = gate_with(clock, default=Limits(rate=10.0))
        assert [gate.allow_frame("a", 100) for _ in range(11)] == [0] * 10 + [100]
        assert gate.allow_frame("b", 100) == 0  # each has its own
        clock.now += 0.099
        assert gate.allow_frame("a", 100) == 1
        clock.now += 0.001
        assert gate.allow_frame("a", 100) == 0
        clock.now += 3600
        assert [gate.allow_frame("a", 100) for _ in range(11)] == [0] * 10 + [100]

    def test_the_long_run_is_the_rate(self, clock):
        gate, sent = gate_with(clock, default=Limits(rate=7.0)), 0
        for _ in range(10_000):
            clock.now += 0.01
            sent += gate.allow_frame("a", 1) == 0
        assert abs(sent - (7 * 100 + 7)) <= 1

    def test_waiting_as_long_as_told_is_enough(self, clock):
        gate = gate_with(clock, default=Limits(rate=3.0, mbit=0.05))
        for size in (1000, 20_000, 7, 6000, 100) * 20:
            clock.now += gate.allow_frame("a", size) / 1000
            while wait := gate.allow_frame("a", size):
                assert wait <= 1  # a millisecond of rounding
                clock.now += wait / 1000

    def test_bits_count_and_a_packet_larger_than_the_bucket_is_late_not_impossible(self, clock):
        gate = gate_with(clock, default=Limits(mbit=1.0))
        assert gate.allow_frame("a", 1_000_000) == 0  # 8 Mbit, on 1 Mbit that are there: owed
        assert gate.allow_frame("a", 1) == 7000
        clock.now += 7.0
        assert gate.allow_frame("a", 1) == 1
        clock.now += 1
        assert gate.allow_frame("a", 1) == 0

    @pytest.mark.parametrize("rate", [1e-9, 5e-324])
    def test_a_wait_for_ever_fits_a_result(self, clock, rate):
        gate = gate_with(clock, default=Limits(rate=rate))
        assert rate_refusal(gate, "a", 1) is None
        refused = rate_refusal(gate, "a", 1)
        assert refusal(Packet(CodecId.RANS, 0, 0, 0, b"", bytes(16), bytes(16)), refused).result.retry_after_ms > 1e9

    def test_a_clock_that_goes_back_gives_nothing_away(self, clock):
        bucket = Bucket(1.0, clock)
        bucket.take(1)
        clock.now -= 500
        assert bucket.wait_ms(1) == 1000
        clock.now += 1
        assert bucket.wait_ms(1) == 0

    def test_who_is_silent_is_forgotten(self, clock):
        limiter, limits = RateLimiter(clock), Limits(rate=1.0)
        for k in range(100):
            limiter.wait_ms(f"client-{k}", limits, 1)
        limiter.forget_idle()
        assert len(limiter._buckets) == 100
        clock.now += 2
        limiter.forget_idle()
        assert not limiter._buckets

    def test_no_limit_is_no_limit(self, clock):
        gate = gate_with(clock)
        assert not any(gate.allow_frame("a", 10**9) for _ in range(1000))


class TestLimits:
    def test_a_client_has_its_own_and_the_rest_from_the_default(self, tmp_path):
        file = tmp_path / "clients.toml"
        file.write_text('[default]\nrate = 5\npriority = "normal"\n[clients.a]\nrate = 50\nmodels = ["tiny"]\n')
        limits = read_limits(file, Limits(rate=1.0, mbit=2.0))
        assert limits.of("b") == Limits(rate=5.0, mbit=2.0, priority="normal")
        assert limits.of("a") == Limits(rate=50.0, mbit=2.0, priority="normal", models=["tiny"])

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("[default]\nrat = 5\n", "unknown key 'rat' in .default.; did you mean 'rate'"),
            ("[default]\nrate = 0\n", "rate = 0.0: it is more than 0"),
            ("[default]\nmbit = inf\n", "mbit = inf"),
            ("[default]\nstreams = 0\n", "streams = 0"),
            ('[default]\npriority = "top"\n', "priority = 'top': it is one of background, normal, urgent"),
            ('[clients."../x"]\nrate = 1\n', "is no client's name"),
            ("[default\n", "is not TOML"),
        ],
    )
    def test_what_cannot_be(self, tmp_path, text, told):
        (tmp_path / "clients.toml").write_text(text)
        with pytest.raises(ConfigError, match=told):
            read_limits(tmp_path / "clients.toml", Limits())

    def test_no_file(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_limits(tmp_path / "none.toml", Limits())

    def test_priorities_are_capped_and_models_kept_to(self, clock):
        gate = gate_with(clock, clients={"a": Limits(priority="normal", models=["tiny"])})
        assert [gate.priority("a", wanted) for wanted in Priority] == [0, 1, 1]
        assert [gate.priority("b", wanted) for wanted in Priority] == list(Priority)
        gate.check_model("a", "tiny")
        gate.check_model("b", "other")
        with pytest.raises(AccessError, match="a may not use the model 'other'; it may use: tiny"):
            gate.check_model("a", "other")


class TestWatchedFiles:
    def test_the_last_sound_state_counts_and_trouble_is_told_once(self, tmp_path, caplog):
        file = tmp_path / "limits.toml"
        file.write_text("[default]\nrate = 1\n")
        watched = Watched([file], lambda: read_limits(file, Limits()), "limits")
        assert not watched.refresh()
        for text in ("[default]\nrate = -1\n", "[default]\nrate = -1\n#\n"):
            file.write_text(text)
            for _ in range(3):
                assert not watched.refresh()
        file.unlink()
        assert not watched.refresh()
        assert watched.value.default.rate == 1
        assert len([record for record in caplog.records if "kept as it was" in record.message]) == 2
        file.write_text("[default]\nrate = 22\n")
        assert watched.refresh()
        assert watched.value.default.rate == 22
        assert not watched.refresh()

    def test_a_file_that_is_exchanged_by_renaming_is_noticed(self, tmp_path):
        file, other = tmp_path / "a", tmp_path / "b"
        file.write_text("1")
        watched = Watched([file], file.read_text, "number")
        other.write_text("2")
        os.utime(other, ns=(file.stat().st_mtime_ns,) * 2)
        other.replace(file)
        assert watched.refresh()
        assert watched.value == "2"


class Showing:
    """A call over a connection on which these certificates were shown, the caller's own first."""

    def __init__(self, *shown):
        self._shown = shown

    def auth_context(self):
        return {
            "x509_pem_cert": [certificate_pem(self._shown[0])],
            "x509_pem_cert_chain": [certificate_pem(*self._shown)],
        }


class TestWhoVouches:
    """That it is asked for each call, and not once at the handshake, is for connections that outlive their CA."""

    @pytest.fixture
    def old(self):
        return make_root("old", 10)

    @pytest.fixture
    def new(self):
        return make_root("new", 10)

    @pytest.fixture
    def file(self, old, tmp_path):
        (tmp_path / "ca.crt").write_bytes(certificate_pem(old.certificate))
        return tmp_path / "ca.crt"

    @pytest.fixture
    def authorities(self, file):
        return Watched([file], lambda: read_authorities(file), "CA")

    @pytest.fixture
    def callers(self, authorities):
        return ByCertificate(Watched([], dict, "revocations"), authorities=authorities)

    def test_a_client_of_a_dropped_ca_is_known_no_more_over_no_connection(self, callers, file, old, new):
        shown = Showing(make_leaf("board-7", old, 1).certificate)
        caller = callers.identify(shown)
        file.write_bytes(certificate_pem(new.certificate))
        assert callers.refresh()
        for attempt in (caller.still, lambda: callers.identify(shown)):
            with pytest.raises(AccessError, match="the CA of the certificate of board-7 counts here no more"):
                attempt()

    def test_by_way_of_a_ca_that_one_of_those_has_signed(self, callers, file, old, new):
        leaf = make_leaf("board-7", new, 1).certificate
        with pytest.raises(AccessError, match="counts here no more"):
            callers.identify(Showing(leaf))
        caller = callers.identify(Showing(leaf, cross_sign(new.certificate, old)))
        file.write_bytes(certificate_pem(new.certificate))
        assert callers.refresh()
        caller.still()
        file.write_bytes(certificate_pem(make_root("another", 10).certificate))
        assert callers.refresh()
        with pytest.raises(AccessError, match="counts here no more"):
            caller.still()

    def test_a_client_vouches_for_nobody(self, callers, old):
        client = make_leaf("board-7", old, 1)
        with pytest.raises(AccessError, match="board-8 counts here no more"):
            callers.identify(Showing(make_leaf("board-8", client, 1).certificate, client.certificate))

    def test_cas_that_vouch_for_each_other_lead_nowhere(self, callers, new):
        other = make_root("other", 10)
        ring = [cross_sign(new.certificate, other), cross_sign(other.certificate, new)]
        with pytest.raises(AccessError, match="counts here no more"):
            callers.identify(Showing(make_leaf("board-7", new, 1).certificate, *ring))

    def test_a_new_ca_that_tls_has_taken_up_already_counts_at_once(self, callers, file, new):
        file.write_bytes(certificate_pem(new.certificate))
        assert callers.identify(Showing(make_leaf("board-7", new, 1).certificate)).name == "board-7"


class TestServersFiles:
    @pytest.fixture
    def fleet(self, tmp_path):
        return Fleet(tmp_path)

    def load(self, folder):
        return ServerTls(ServerFiles.of_folder(folder, client_authority=None, clients=True))

    def test_what_is_no_servers_certificate(self, fleet):
        with pytest.raises(CertificateError, match="is a client's certificate"):
            self.load(fleet.board())
        folder = fleet.odd(fleet.folder / "nameless")
        with pytest.raises(CertificateError, match="names no host"):
            self.load(folder)
        write(folder, fleet.authority.root, fleet.authority.bundle)
        with pytest.raises(CertificateError, match="is a CA's certificate"):
            self.load(folder)

    def test_what_does_not_fit_or_is_open_to_others(self, fleet):
        folder, other = fleet.server(), fleet.server("other")
        key = (folder / "tls.key").read_bytes()
        (folder / "tls.key").write_bytes((other / "tls.key").read_bytes())
        with pytest.raises(CertificateError, match="the key is not the certificate's"):
            self.load(folder)
        (folder / "tls.key").write_bytes(b"garbage")
        with pytest.raises(KeyFileError, match="no private key"):
            self.load(folder)
        (folder / "tls.key").write_bytes(key)
        (folder / "tls.key").chmod(0o644)
        with pytest.raises(KeyFileError, match="chmod 600"):
            self.load(folder)

    @pytest.mark.parametrize(
        "content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    )
    @pytest.mark.parametrize("name", ["tls.crt", "ca.crt"])
    def test_garbage(self, fleet, name, content):
        folder = fleet.server()
        (folder / name).write_bytes(content)
        with pytest.raises(CertificateError, match=name):
            self.load(folder)

    def test_an_end_that_is_near_is_told(self, fleet, caplog):
        self.load(fleet.server())
        assert not caplog.records
        Authority(fleet.folder / "ca").issue("tail", fleet.folder / "tail", hosts=["localhost"], days=20)
        loaded = self.load(fleet.folder / "tail")
        loaded._warn()  # once a day
        (record,) = caplog.records
        assert "issue the next one: it is taken up without a restart" in record.getMessage()

    def test_a_leaf_is_no_ca(self, fleet):
        folder = fleet.server()
        (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())
        with pytest.raises(CertificateError, match="no CA's certificate"):
            self.load(folder)
        (folder / "ca.crt").unlink()
        with pytest.raises(ConfigError, match="--tokens FILE"):
            self.load(folder)


def test_refusals_are_told_once_a_minute_for_each_address(clock, caplog):
    refusals = RefusalLog(clock)
    for _ in range(1000):
        refusals.tell("192.0.2.7", "no token")
    refusals.tell("192.0.2.8", "no token")
    assert len(caplog.records) == 2
    clock.now += 61
    refusals.tell("192.0.2.7", "no token")
    assert caplog.records[-1].getMessage() == "refused 192.0.2.7: no token (and 999 times before)"
    for k in range(3000):
        refusals.tell(f"2001:db8::{k:x}", "no token")
    assert len(refusals.seldom) == Seldom.MAX_KINDS


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_this_machine_may_always_be_listened_on(address):
    check_listen(parse_address(address), encrypted=False, authenticates=False, insecure=False)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.7:1", "tail.example:1"])
def test_beyond_it_only_encrypted_and_with_known_callers(address):
    address = parse_address(address)
    check_listen(address, encrypted=True, authenticates=True, insecure=False)
    check_listen(address, encrypted=False, authenticates=False, insecure=True)
    with pytest.raises(ListenError, match="anyone could use it; serve with --tls DIR"):
        check_listen(address, encrypted=True, authenticates=False, insecure=False)
    with pytest.raises(ListenError, match="neither encrypted nor authenticated.*--http 127"):
        check_listen(address, encrypted=False, authenticates=False, insecure=False, what="--http")


def test_addresses_lose_their_ports():
    assert host_of("ipv4:192.0.2.7:5000") == "192.0.2.7"
    assert host_of("ipv6:%5B2001:db8::1%5D:5000") == "2001:db8::1"
    assert host_of("unix:/run/x") == "unix:/run/x"
    assert OpenGate().allow_frame("a", 10**9) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tokens", "t"], "--tokens goes with --tls DIR"),
        (["--client-ca", "c"], "--client-ca goes with --tls DIR"),
        (["--revoked", "r"], "--revoked goes with --tls DIR"),
        (["--tls", "d", "--tokens", "t", "--client-ca", "c"], "--client-ca is about certificates"),
        (["--tls", "none"], "no none/ca.crt"),
        (["--tls", "none", "--tokens", "t"], "no token file t"),
    ],
)
def test_options_that_do_not_go_together(tiny_folder, options, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trust = str(tiny_folder / "test.pub")
    assert main(["serve", "--bundles", str(tiny_folder), "--trust", trust, "--listen", "127.0.0.1:0", *options]) != 0
    assert told in capsys.readouterr().err
