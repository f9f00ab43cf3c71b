"""Real TLS on real sockets: who gets in, what the others are told, and what changes while the server runs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import logging
import socket
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from support import bundles
from support.fleet import Fleet, odd_certificate, write
from support.server import serving as server_process
from support.waiting import until

from narrowcast.cli import main
from narrowcast.cli.serving import security
from narrowcast.head.client import AsyncClient
from narrowcast.head.errors import LinkError, PeerUnreachableError, RefusedError
from narrowcast.head.session import HeadSession
from narrowcast.tail import access_gate, access_tls
from narrowcast.tail.errors import ListenError
from narrowcast.tail.observe import Silent
from narrowcast.tail.server import TailServer
from narrowcast.tail.store import load_models
from narrowcast.transport.errors import CertificateError
from narrowcast.transport.packet import VERSION
from narrowcast.transport.pki.authority import Authority
from narrowcast.transport.pki.certificates import certificate_pem
from narrowcast.transport.pki.tokens import add_token, remove_tokens
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import Address
from narrowcast.transport.rpc.credentials import ClientTls, client_tls, open_channel
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub

FRAME = bundles.random_frames(1)[0]
LOOPBACK = Address("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    """Changed files are noticed at once, and the shell's own token does not count."""
    monkeypatch.setattr(access_gate, "LOOK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(access_tls, "LOOK_EVERY_SECONDS", 0.0)
    monkeypatch.delenv("NARROWCAST_TOKEN", raising=False)


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    """A board with the bundle loaded."""
    return HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"), backend="onnxruntime", precision="fp32")


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


@pytest.fixture
def tail(fleet):
    return fleet.server()


@pytest.fixture
def board(fleet):
    return fleet.board()


class Refusals(Silent):
    """An observer of who is turned away."""

    def __init__(self):
        self.codes = []

    def refused(self, client, model, code):
        self.codes.append(code)


@contextlib.asynccontextmanager
async def serving(tiny_folder, *options, observer=None, listen=LOOPBACK):
    """A server on this loop, set up by the command line's own options."""
    parser = argparse.ArgumentParser()
    security.add_arguments(parser)
    args = parser.parse_args([str(option) for option in options])
    models = load_models(tiny_folder, trusted=[bundles.trusted_key()])
    server = TailServer(models, listen, access=security.build_access(args), observer=observer)
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


async def answer(tiny, address, tls, **options):
    """One frame's result through the edge client."""
    options = {"give_up_seconds": 1.0, **options}
    async with AsyncClient(tiny, address, tls=tls, **options) as client:
        return await client.infer(FRAME)


async def opened(tiny, address, tls):
    """A raw stream, open: (channel, call, what the server said)."""
    channel = open_channel(address, client_tls(tls))
    call = TailServiceStub(channel).Stream()
    fingerprint = tiny.codec.fingerprint
    await call.write(
        pb.StreamRequest(
            open=pb.Open(
                model="tiny", codec_fingerprint=fingerprint, packet_version=VERSION, stream_id=bytes(16), window=4
            )
        )
    )
    return channel, call, (await call.read()).opened


async def called(tiny, address, tls):
    """By which name the server knows us."""
    channel, call, said = await opened(tiny, address, tls)
    call.cancel()
    await channel.close()
    return said.client


async def eventually(attempt, what, seconds=10.0):
    """Waits until ``await attempt()`` is true."""
    deadline = time.monotonic() + seconds
    while not await attempt():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        await asyncio.sleep(0.05)


async def refused(tiny, address, tls):
    """Whether the server, or TLS, turns us away."""
    try:
        await called(tiny, address, tls)
    except grpc.aio.AioRpcError as error:
        return error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
    return False


async def trouble(tiny, address, tls):
    """The error that a user sees, in full."""
    with pytest.raises(LinkError) as caught:
        await answer(tiny, address, tls, give_up_seconds=0.3)
    return str(caught.value)


class TestCertificates:
    async def test_frames_flow_and_the_server_knows_the_client_by_its_certificate(self, tiny_folder, tiny, tail, board):
        async with serving(tiny_folder, "--tls", tail) as address:
            result = await answer(tiny, address, board)
            assert result.outputs["output"] == pytest.approx(bundles.expected_output(FRAME, 1))
            assert await called(tiny, address, board) == "board-7"
            assert await called(tiny, Address("localhost", address.port), board) == "board-7"

    async def test_who_has_no_certificate_is_told_so(self, tiny_folder, tiny, tail, board):
        (board / "tls.crt").unlink()
        (board / "tls.key").unlink()
        async with serving(tiny_folder, "--tls", tail) as address:
            assert "wants a certificate" in await trouble(tiny, address, board)
            assert "--tls DIR" in await trouble(tiny, address, None)

    async def test_a_certificate_that_the_server_does_not_accept_is_named_with_the_reason(
        self, tiny_folder, tiny, fleet, tail, tmp_path
    ):
        day = dt.timedelta(days=1)
        other = Fleet(tmp_path / "other")
        stranger = fleet.odd(tmp_path / "stranger", issuer=other.authority.root)
        ended = fleet.odd(tmp_path / "ended", start=-3 * day, end=-day)
        early = fleet.odd(tmp_path / "early", start=day, end=2 * day)
        authority = tmp_path / "authority"
        authority.mkdir()
        write(authority, fleet.authority.root, fleet.authority.bundle)
        async with serving(tiny_folder, "--tls", tail) as address:
            assert "is of another CA than those in" in await trouble(tiny, address, stranger)
            assert "has expired" in await trouble(tiny, address, ended)
            assert "is not valid yet" in await trouble(tiny, address, early)
            assert "is a server's certificate" in await trouble(tiny, address, tail)
            assert "is it a CA's?" in await trouble(tiny, address, authority)

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"common_names": ()}, "carries no name"),
            ({"common_names": ("a", "b")}, "2 common names"),
            ({"common_names": ("../../etc/passwd",)}, "is no name here"),
            ({"common_names": ("board\n7",)}, "is no name here"),
            ({"common_names": ("b\u00f6ard",)}, "is no name here"),
            ({"common_names": ("-rf",)}, "is no name here"),
        ],
    )  # fmt: skip
    async def test_names_that_are_none_are_refused_by_the_server(
        self, tiny_folder, tiny, fleet, tail, tmp_path, changes, told, caplog
    ):
        odd = fleet.odd(tmp_path / "odd", **changes)
        with caplog.at_level(logging.WARNING):
            async with serving(tiny_folder, "--tls", tail) as address:
                with pytest.raises(RefusedError, match=told):
                    await answer(tiny, address, odd)
        assert all("\n" not in record.getMessage() for record in caplog.records)

    async def test_a_certificate_of_another_maker_may_carry_its_name_as_a_dns_name(
        self, tiny_folder, tiny, fleet, tail, tmp_path
    ):
        odd = fleet.odd(tmp_path / "odd", common_names=(), dns=("cam.example", "other"))
        async with serving(tiny_folder, "--tls", tail) as address:
            assert await called(tiny, address, odd) == "cam.example"

    async def test_another_ca_may_vouch_for_the_clients(self, tiny_folder, tiny, tail, board, tmp_path):
        theirs = Fleet(tmp_path / "theirs").board("cam-1")
        authority = (theirs / "ca.crt").rename(tmp_path / "theirs.crt")
        (theirs / "ca.crt").write_bytes((tail / "ca.crt").read_bytes())
        async with serving(tiny_folder, "--tls", tail, "--client-ca", authority) as address:
            assert await called(tiny, address, theirs) == "cam-1"
            assert await refused(tiny, address, board)
            assert "of a CA that the server does not trust" in await trouble(tiny, address, board)

    async def test_the_clients_own_time_is_said_when_it_is_wrong(self, tiny_folder, tiny, fleet, board, tmp_path):
        late = tmp_path / "late"
        late.mkdir()
        day = dt.timedelta(days=1)
        write(
            late,
            odd_certificate(fleet.authority.root, dns=("127.0.0.1",), start=day, end=2 * day),
            fleet.authority.bundle,
        )
        async with serving(tiny_folder, "--tls", late) as address:
            assert "is not valid yet (the clock here says 20" in await trouble(tiny, address, board)


class TestServersThatAreNotTrusted:
    async def test_a_server_of_another_ca(self, tiny_folder, tiny, board, tmp_path):
        impostor = Fleet(tmp_path / "impostor").server()
        async with serving(tiny_folder, "--tls", impostor) as address:
            assert "a certificate of another CA" in await trouble(tiny, address, board)

    async def test_a_server_under_another_name(self, tiny_folder, tiny, fleet, board):
        elsewhere = fleet.server(hosts=["tail.example"])
        async with serving(tiny_folder, "--tls", elsewhere) as address:
            assert "is not for 127.0.0.1; issue it with --host 127.0.0.1" in await trouble(tiny, address, board)
            by_name = ClientTls.from_folder(board, server_name="tail.example")
            assert await called(tiny, address, by_name) == "board-7"

    async def test_a_board_cannot_pose_as_the_server(self, tiny_folder, tiny, fleet, board, tmp_path):
        with pytest.raises(CertificateError, match="is a client's certificate"):
            async with serving(tiny_folder, "--tls", board):
                pass
        # With other software it could try: the certificate itself forbids it.
        credentials = grpc.ssl_server_credentials(
            [((board / "tls.key").read_bytes(), (board / "tls.crt").read_bytes())]
        )
        server = grpc.aio.server()
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            by_name = ClientTls.from_folder(fleet.board("board-8"), server_name="board-7")
            assert "not accepted" in await trouble(tiny, Address("127.0.0.1", port), by_name)
        finally:
            await server.stop(0)

    async def test_a_server_without_tls(self, tiny_folder, tiny, board):
        async with serving(tiny_folder) as address:
            assert "does not speak TLS" in await trouble(tiny, address, board)


class TestSeveralServersBehindOneName:
    async def test_the_certificate_is_for_the_name_whichever_address_is_taken(
        self, tiny_folder, tiny, fleet, board, tmp_path, monkeypatch
    ):
        sound = fleet.server(hosts=["tails.test"])
        elsewhere = fleet.server("elsewhere", ["other.test", "127.0.0.2"])
        stranger = Fleet(tmp_path / "strangers").server(hosts=["tails.test"])
        hosts = [f"127.0.0.{k}" for k in (2, 3, 4, 5)]

        def known(host, port, *rest, **options):
            assert host == "tails.test"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port)) for where in hosts]

        monkeypatch.setattr(socket, "getaddrinfo", known)
        troubles = []
        async with contextlib.AsyncExitStack() as bad:
            first = Address(hosts[0], 0)
            port = (await bad.enter_async_context(serving(tiny_folder, "--tls", elsewhere, listen=first))).port
            await bad.enter_async_context(serving(tiny_folder, "--tls", stranger, listen=Address(hosts[1], port)))
            good = {host: serving(tiny_folder, "--tls", sound, listen=Address(host, port)) for host in hosts[2:]}
            for server in good.values():
                await server.__aenter__()
            to = Address("tails.test", port)
            async with AsyncClient(tiny, to, tls=board, on_trouble=troubles.append) as client:
                assert (await client.infer(FRAME)).error is None
                used = client._link.endpoints._current.address.host
                assert used in good
                await good.pop(used).__aexit__(None, None, None)
                assert (await asyncio.wait_for(client.infer(FRAME), 20)).error is None
                (other,) = good
                assert client._link.endpoints._current.address.host == other
            await good.pop(other).__aexit__(None, None, None)
            # Those that are left are in reach, and never used.
            line = await trouble(tiny, to, board)
            assert "is not for tails.test" in line
            assert "shows a certificate of another CA" in line


class TestWhileTheServerRuns:
    async def test_a_revoked_client_loses_its_open_stream_and_gets_no_other(
        self, tiny_folder, tiny, fleet, tail, board
    ):
        async with serving(tiny_folder, "--tls", tail) as address:
            channel, call, _ = await opened(tiny, address, board)
            other_channel, other, _ = await opened(tiny, address, fleet.board("board-8"))
            fleet.authority.revoke("board-7")
            (tail / "revoked.txt").write_bytes(fleet.authority.revocation_list())
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await asyncio.wait_for(call.read(), 10)
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "was revoked on" in ended.value.details()
            with pytest.raises(RefusedError, match="keys issue board-7 makes a new one"):
                await answer(tiny, address, board)
            assert not other.done()
            fleet.board()  # a new certificate, same name
            assert await called(tiny, address, board) == "board-7"
            await channel.close()
            await other_channel.close()

    async def test_a_damaged_list_frees_nobody(self, tiny_folder, tiny, fleet, tail, board, caplog):
        fleet.authority.revoke("board-7")
        fleet.authority.export(tail)
        async with serving(tiny_folder, "--tls", tail) as address:
            assert await refused(tiny, address, board)
            (tail / "revoked.txt").write_bytes(b"garbage\n")

            async def told():
                return "kept as it was" in caplog.text

            await eventually(told, "the damaged list is logged")
            assert await refused(tiny, address, board)
            (tail / "revoked.txt").unlink()
            caplog.clear()
            await eventually(told, "the missing list is logged")
            assert await refused(tiny, address, board)

    async def test_a_certificate_that_ends_ends_its_stream(self, tiny_folder, tiny, fleet, tail, tmp_path):
        short = fleet.odd(tmp_path / "short", end=dt.timedelta(seconds=2))
        async with serving(tiny_folder, "--tls", tail) as address:
            channel, call, _ = await opened(tiny, address, short)
            with pytest.raises(grpc.aio.AioRpcError, match="ended on") as ended:
                await asyncio.wait_for(call.read(), 10)
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
            await channel.close()

    async def test_a_rotation_cuts_nobody_off_in_any_order(self, tiny_folder, tiny, fleet, tail):
        authority = fleet.authority
        old, early, both = fleet.board("old"), fleet.board("early"), fleet.board("both")
        async with serving(tiny_folder, "--tls", tail) as address:
            channel, call, _ = await opened(tiny, address, old)
            authority.rotate()
            fleet.board("early")  # a new certificate, although the server knows the old CA alone
            assert await called(tiny, address, early) == "early"
            other, goes_on, _ = await opened(tiny, address, early)
            fleet.server()  # the server's turn, although "old" knows the old CA alone

            new_only = fleet.board("new-only")  # knows the new CA alone
            (new_only / "ca.crt").write_bytes(certificate_pem(authority.root.certificate))

            async def new_one():
                return not await refused(tiny, address, new_only)

            await eventually(new_one, "the server shows its new certificate")
            assert await called(tiny, address, old) == "old"
            assert await called(tiny, address, both) == "both"
            assert not call.done()
            assert {entry.name for entry in authority.finish()} == {"old", "both"}
            authority.export(tail)

            async def old_is_out():
                return await refused(tiny, address, old)

            await eventually(old_is_out, "the old CA is dropped")
            with pytest.raises(grpc.aio.AioRpcError, match="the CA of the certificate of old counts here no more"):
                await asyncio.wait_for(call.read(), 10)
            assert await called(tiny, address, early) == "early"
            assert not goes_on.done()
            await channel.close()
            await other.close()

    async def test_a_half_exchanged_certificate_changes_nothing(self, tiny_folder, tiny, fleet, tail, board, caplog):
        async with serving(tiny_folder, "--tls", tail) as address:
            whole = (tail / "tls.key").read_bytes()
            (tail / "tls.key").write_bytes((board / "tls.key").read_bytes())

            async def told():
                assert await called(tiny, address, board) == "board-7"
                return "the key is not the certificate's" in caplog.text

            await eventually(told, "the misfit is logged")
            (tail / "tls.key").write_bytes(whole)
            assert await called(tiny, address, board) == "board-7"


class TestTokens:
    @pytest.fixture
    def client(self, fleet, tmp_path):
        """What a client with a token has: the CA, and the token's file."""
        fleet.authority.export(tmp_path / "public", revoked=False)
        return tmp_path / "public"

    async def test_a_token_names_its_client_until_it_is_revoked(self, tiny_folder, tiny, tail, client, tmp_path):
        tokens = tmp_path / "tokens.txt"
        token, other = add_token(tokens, "board-7"), add_token(tokens, "board-8")
        assert token not in tokens.read_text()
        async with serving(tiny_folder, "--tls", tail, "--tokens", tokens) as address:
            tls = ClientTls.from_folder(client, token=token)
            assert await called(tiny, address, tls) == "board-7"
            channel, call, _ = await opened(tiny, address, tls)
            remove_tokens(tokens, "board-7")
            with pytest.raises(grpc.aio.AioRpcError, match="unknown here, or was revoked"):
                await asyncio.wait_for(call.read(), 10)
            with pytest.raises(RefusedError, match="unknown here, or was revoked"):
                await answer(tiny, address, tls)
            assert await called(tiny, address, ClientTls.from_folder(client, token=other)) == "board-8"
            await channel.close()

    async def test_without_a_token_no_service_answers_but_health(self, tiny_folder, tiny, tail, client, tmp_path):
        tokens = tmp_path / "tokens.txt"
        add_token(tokens, "board-7")
        refusals = Refusals()
        async with serving(tiny_folder, "--tls", tail, "--tokens", tokens, observer=refusals) as address:
            tls = ClientTls.from_folder(client)
            with pytest.raises(RefusedError, match="no token was shown"):
                await answer(tiny, address, tls)
            async with open_channel(address, tls) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await TailServiceStub(channel).ListModels(pb.ListModelsRequest())
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                assert health.status == health_pb2.HealthCheckResponse.SERVING
                for shown in ("Bearer", "Basic eDp5", "Bearer " + "x" * 43):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await TailServiceStub(channel).ListModels(
                            pb.ListModelsRequest(), metadata=[("authorization", shown)]
                        )
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert refusals.codes == ["UNAUTHENTICATED"] * 5

    async def test_services_that_stream_are_behind_the_gate_too(self, tiny_folder, tail, client, tmp_path):
        token = add_token(tmp_path / "tokens.txt", "board-7")
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        async with serving(tiny_folder, "--tls", tail, "--tokens", tmp_path / "tokens.txt") as address:
            async with open_channel(address, ClientTls.from_folder(client)) as channel:
                with pytest.raises(grpc.aio.AioRpcError, match="no token was shown"):
                    _ = [one async for one in ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))]
            async with open_channel(address, ClientTls.from_folder(client, token=token)) as channel:
                (listed,) = [one async for one in ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))]
        assert "narrowcast.tail.v1.TailService" in [one.name for one in listed.list_services_response.service]

    async def test_the_environment_gives_a_token_too(self, tiny_folder, tiny, tail, client, tmp_path, monkeypatch):
        token = add_token(tmp_path / "tokens.txt", "board-7")
        monkeypatch.setenv("NARROWCAST_TOKEN", token)
        async with serving(tiny_folder, "--tls", tail, "--tokens", tmp_path / "tokens.txt") as address:
            assert await called(tiny, address, client) == "board-7"


class TestLimits:
    async def test_streams_are_counted_for_each_client_and_for_all(self, tiny_folder, tiny, fleet, tail, board):
        other = fleet.board("board-8")
        options = ("--tls", tail, "--max-client-streams", 1, "--max-streams", 2)
        async with serving(tiny_folder, *options) as address:
            channel, call, _ = await opened(tiny, address, board)
            with pytest.raises(grpc.aio.AioRpcError, match="the most that it may have"):
                await called(tiny, address, board)
            second, _, _ = await opened(tiny, address, other)
            with pytest.raises(grpc.aio.AioRpcError, match="the most for this server"):
                await called(tiny, address, fleet.board("board-9"))
            call.cancel()

            async def room():
                try:
                    return await called(tiny, address, board) == "board-7"
                except grpc.aio.AioRpcError:
                    return False

            await eventually(room, "a place is free again")
            await channel.close()
            await second.close()

    async def test_models_are_for_those_who_may_use_them(self, tiny_folder, tiny, tail, board, tmp_path):
        clients = tmp_path / "clients.toml"
        clients.write_text('[clients.board-7]\nmodels = ["other"]\n')
        async with serving(tiny_folder, "--tls", tail, "--clients", clients) as address:
            with pytest.raises(RefusedError, match="may not use the model 'tiny'; it may use: other"):
                await answer(tiny, address, board)
            clients.write_text("only_listed = true\n")

            async def shut_out():
                try:
                    await answer(tiny, address, board)
                except RefusedError as error:
                    return "is not among the clients" in str(error)
                return False

            await eventually(shut_out, "the new limits count")


class TestListening:
    def test_beyond_this_machine_only_with_tls_or_when_told(self, tiny_folder, tail):
        models = load_models(tiny_folder, trusted=[bundles.trusted_key()])
        parser = argparse.ArgumentParser()
        security.add_arguments(parser)
        beyond = Address("0.0.0.0", 0)
        with pytest.raises(ListenError, match="neither encrypted nor authenticated; serve with --tls DIR"):
            TailServer(models, beyond, access=security.build_access(parser.parse_args([])))
        TailServer(models, beyond, access=security.build_access(parser.parse_args(["--tls", str(tail)])))
        TailServer(models, beyond, insecure=True)

    async def test_who_connects_and_says_nothing_holds_up_nobody(self, tiny_folder, tiny, tail, board):
        async with serving(tiny_folder, "--tls", tail) as address:
            with contextlib.ExitStack() as stack:
                for noise in (b"", b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.1\r\n\r\n", bytes(4096)):
                    line = stack.enter_context(socket.create_connection((address.host, address.port), timeout=5))
                    line.sendall(noise)
                assert await called(tiny, address, board) == "board-7"


async def test_an_unreachable_server_is_not_blamed_on_certificates(tiny, board):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(PeerUnreachableError) as caught:
        await answer(tiny, Address("127.0.0.1", port), board, give_up_seconds=0.3)
    assert "certificate" not in str(caught.value)


def test_two_machines_by_the_command_line(tiny_folder, tmp_path, photo_folder, keys_folder, capfd):
    """The four commands of docs/security.md; the server is a process of its own."""

    def narrowcast(*words):
        code = main([str(word) for word in words])
        said = capfd.readouterr()
        return code, said.out + said.err

    tail, board = tmp_path / "tail-tls", tmp_path / "board-7"
    assert narrowcast("keys", "issue", "tail", "--host", "127.0.0.1", "--out", tail)[0] == 0
    assert narrowcast("keys", "issue", "board-7", "--out", board)[0] == 0
    picture = next(photo_folder.rglob("*.png"))
    with server_process(tiny_folder, tiny_folder / "test.pub", "--tls", str(tail), listen="0.0.0.0:0") as server:
        to = f"127.0.0.1:{server.address.port}"
        stream = ("stream", tiny_folder / "tiny.ncb", picture, "--to", to, "--trust", tiny_folder / "test.pub")
        code, said = narrowcast(*stream, "--tls", board)
        assert code == 0, said
        assert '"from": "server"' in said
        assert narrowcast("keys", "revoke", "board-7", "--out", tail)[0] == 0
        until(lambda: "was revoked on" in narrowcast(*stream, "--tls", board)[1], "the board is refused")
        _, log = server.end()
        assert "refused 127.0.0.1: the certificate of board-7 was revoked" in log
    assert Authority.open(keys_folder / "ca").issued()[1].revoked is not None
