"""Real TLS on real sockets: who gets in, what the others are told, and what changes while the server runs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import logging
import socket

import grpc
import pytest
from support import bundles
from support.fleet import Fleet, odd_certificate, write
from support.secured import FRAME, answer, called, refused, serving, trouble
from support.server import serving as server_process
from support.waiting import until

from narrowcast.cli import main
from narrowcast.cli.serving import security
from narrowcast.head.client import AsyncClient
from narrowcast.head.errors import PeerUnreachableError, RefusedError
from narrowcast.tail.errors import ListenError
from narrowcast.tail.server import TailServer
from narrowcast.tail.store import load_models
from narrowcast.transport.errors import CertificateError
from narrowcast.transport.pki.authority import Authority
from narrowcast.transport.rpc.channels import Address
from narrowcast.transport.rpc.credentials import ClientTls

pytestmark = pytest.mark.usefixtures("look_often")


class TestCertificates:
    async def test_frames_flow_and_the_server_knows_the_client_by_its_certificate(
        self, tiny_folder, session, tail, board
    ):
        async with serving(tiny_folder, "--tls", tail) as address:
            result = await answer(session, address, board)
            assert result.outputs["output"] == pytest.approx(bundles.expected_output(FRAME, 1))
            assert await called(session, address, board) == "board-7"
            assert await called(session, Address("localhost", address.port), board) == "board-7"

    async def test_who_has_no_certificate_is_told_so(self, tiny_folder, session, tail, board):
        (board / "tls.crt").unlink()
        (board / "tls.key").unlink()
        async with serving(tiny_folder, "--tls", tail) as address:
            assert "wants a certificate" in await trouble(session, address, board)
            assert "--tls DIR" in await trouble(session, address, None)

    async def test_a_certificate_that_the_server_does_not_accept_is_named_with_the_reason(
        self, tiny_folder, session, fleet, tail, tmp_path
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
            assert "is of another CA than those in" in await trouble(session, address, stranger)
            assert "has expired" in await trouble(session, address, ended)
            assert "is not valid yet" in await trouble(session, address, early)
            assert "is a server's certificate" in await trouble(session, address, tail)
            assert "is it a CA's?" in await trouble(session, address, authority)

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
        self, tiny_folder, session, fleet, tail, tmp_path, changes, told, caplog
    ):
        odd = fleet.odd(tmp_path / "odd", **changes)
        with caplog.at_level(logging.WARNING):
            async with serving(tiny_folder, "--tls", tail) as address:
                with pytest.raises(RefusedError, match=told):
                    await answer(session, address, odd)
        assert all("\n" not in record.getMessage() for record in caplog.records)

    async def test_a_certificate_of_another_maker_may_carry_its_name_as_a_dns_name(
        self, tiny_folder, session, fleet, tail, tmp_path
    ):
        odd = fleet.odd(tmp_path / "odd", common_names=(), dns=("cam.example", "other"))
        async with serving(tiny_folder, "--tls", tail) as address:
            assert await called(session, address, odd) == "cam.example"

    async def test_another_ca_may_vouch_for_the_clients(self, tiny_folder, session, tail, board, tmp_path):
        theirs = Fleet(tmp_path / "theirs").board("cam-1")
        authority = (theirs / "ca.crt").rename(tmp_path / "theirs.crt")
        (theirs / "ca.crt").write_bytes((tail / "ca.crt").read_bytes())
        async with serving(tiny_folder, "--tls", tail, "--client-ca", authority) as address:
            assert await called(session, address, theirs) == "cam-1"
            assert await refused(session, address, board)
            assert "of a CA that the server does not trust" in await trouble(session, address, board)

    async def test_the_clients_own_time_is_said_when_it_is_wrong(self, tiny_folder, session, fleet, board, tmp_path):
        late = tmp_path / "late"
        late.mkdir()
        day = dt.timedelta(days=1)
        write(
            late,
            odd_certificate(fleet.authority.root, dns=("127.0.0.1",), start=day, end=2 * day),
            fleet.authority.bundle,
        )
        async with serving(tiny_folder, "--tls", late) as address:
            assert "is not valid yet (the clock here says 20" in await trouble(session, address, board)


class TestServersThatAreNotTrusted:
    async def test_a_server_of_another_ca(self, tiny_folder, session, board, tmp_path):
        impostor = Fleet(tmp_path / "impostor").server()
        async with serving(tiny_folder, "--tls", impostor) as address:
            assert "a certificate of another CA" in await trouble(session, address, board)

    async def test_a_server_under_another_name(self, tiny_folder, session, fleet, board):
        elsewhere = fleet.server(hosts=["tail.example"])
        async with serving(tiny_folder, "--tls", elsewhere) as address:
            assert "is not for 127.0.0.1; issue it with --host 127.0.0.1" in await trouble(session, address, board)
            by_name = ClientTls.from_folder(board, server_name="tail.example")
            assert await called(session, address, by_name) == "board-7"

    async def test_a_board_cannot_pose_as_the_server(self, tiny_folder, session, fleet, board, tmp_path):
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
            assert "not accepted" in await trouble(session, Address("127.0.0.1", port), by_name)
        finally:
            await server.stop(0)

    async def test_a_server_without_tls(self, tiny_folder, session, board):
        async with serving(tiny_folder) as address:
            assert "does not speak TLS" in await trouble(session, address, board)


class TestSeveralServersBehindOneName:
    async def test_the_certificate_is_for_the_name_whichever_address_is_taken(
        self, tiny_folder, session, fleet, board, tmp_path, monkeypatch
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
            async with AsyncClient(session, to, tls=board, on_trouble=troubles.append) as client:
                assert (await client.infer(FRAME)).error is None
                used = client._link.endpoints._current.address.host
                assert used in good
                await good.pop(used).__aexit__(None, None, None)
                assert (await asyncio.wait_for(client.infer(FRAME), 20)).error is None
                (other,) = good
                assert client._link.endpoints._current.address.host == other
            await good.pop(other).__aexit__(None, None, None)
            # Those that are left are in reach, and never used.
            line = await trouble(session, to, board)
            assert "is not for tails.test" in line
            assert "shows a certificate of another CA" in line


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

    async def test_who_connects_and_says_nothing_holds_up_nobody(self, tiny_folder, session, tail, board):
        async with serving(tiny_folder, "--tls", tail) as address:
            with contextlib.ExitStack() as stack:
                for noise in (b"", b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.1\r\n\r\n", bytes(4096)):
                    line = stack.enter_context(socket.create_connection((address.host, address.port), timeout=5))
                    line.sendall(noise)
                assert await called(session, address, board) == "board-7"


async def test_an_unreachable_server_is_not_blamed_on_certificates(session, board):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(PeerUnreachableError) as caught:
        await answer(session, Address("127.0.0.1", port), board, give_up_seconds=0.3)
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
