"""Who may do what over real TLS: tokens, limits, and what changes while the server runs."""

from __future__ import annotations

import asyncio
import datetime as dt

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from support.inprocess import Recorder, until
from support.secured import Refusals, answer, called, eventually, opened, refused, serving

from narrowcast.head.errors import RefusedError
from narrowcast.transport.pki.certificates import certificate_pem
from narrowcast.transport.pki.tokens import add_token, remove_tokens
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.credentials import ClientTls, open_channel
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub

pytestmark = pytest.mark.usefixtures("look_often")


class TestWhileTheServerRuns:
    async def test_a_revoked_client_loses_its_open_stream_and_gets_no_other(
        self, tiny_folder, session, fleet, tail, board
    ):
        watching = Recorder()
        async with serving(tiny_folder, "--tls", tail, observer=watching) as address:
            channel, call, _ = await opened(session, address, board)
            other_channel, other, _ = await opened(session, address, fleet.board("board-8"))
            fleet.authority.revoke("board-7")
            (tail / "revoked.txt").write_bytes(fleet.authority.revocation_list())
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await asyncio.wait_for(call.read(), 10)
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "was revoked on" in ended.value.details()
            await until(lambda: watching.closed, "the stream is closed here, too")
            assert [(one.client, reason) for one, reason in watching.closed] == [("board-7", "UNAUTHENTICATED")]
            with pytest.raises(RefusedError, match="keys issue board-7 makes a new one"):
                await answer(session, address, board)
            assert not other.done()
            fleet.board()  # a new certificate, same name
            assert await called(session, address, board) == "board-7"
            await channel.close()
            await other_channel.close()

    async def test_a_damaged_list_frees_nobody(self, tiny_folder, session, fleet, tail, board, caplog):
        fleet.authority.revoke("board-7")
        fleet.authority.export(tail)
        async with serving(tiny_folder, "--tls", tail) as address:
            assert await refused(session, address, board)
            (tail / "revoked.txt").write_bytes(b"garbage\n")

            async def told():
                return "kept as it was" in caplog.text

            await eventually(told, "the damaged list is logged")
            assert await refused(session, address, board)
            caplog.clear()
            (tail / "revoked.txt").unlink()
            await eventually(told, "the missing list is logged")
            assert await refused(session, address, board)

    async def test_a_certificate_that_ends_ends_its_stream(self, tiny_folder, session, fleet, tail, tmp_path):
        async with serving(tiny_folder, "--tls", tail) as address:
            short = fleet.odd(tmp_path / "short", end=dt.timedelta(seconds=6))
            channel, call, _ = await opened(session, address, short)
            with pytest.raises(grpc.aio.AioRpcError, match="ended on") as ended:
                await asyncio.wait_for(call.read(), 60)
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
            await channel.close()

    async def test_a_rotation_cuts_nobody_off_in_any_order(self, tiny_folder, session, fleet, tail):
        authority = fleet.authority
        old, early, both = fleet.board("old"), fleet.board("early"), fleet.board("both")
        async with serving(tiny_folder, "--tls", tail) as address:
            channel, call, _ = await opened(session, address, old)
            authority.rotate()
            fleet.board("early")  # a new certificate, although the server knows the old CA alone
            assert await called(session, address, early) == "early"
            other, goes_on, _ = await opened(session, address, early)
            fleet.server()  # the server's turn, although "old" knows the old CA alone

            new_only = fleet.board("new-only")  # knows the new CA alone
            (new_only / "ca.crt").write_bytes(certificate_pem(authority.root.certificate))

            async def new_one():
                return not await refused(session, address, new_only)

            await eventually(new_one, "the server shows its new certificate")
            assert await called(session, address, old) == "old"
            assert await called(session, address, both) == "both"
            assert not call.done()
            assert {entry.name for entry in authority.finish()} == {"old", "both"}
            authority.export(tail)

            async def old_is_out():
                return await refused(session, address, old)

            await eventually(old_is_out, "the old CA is dropped")
            with pytest.raises(grpc.aio.AioRpcError, match="the CA of the certificate of old counts here no more"):
                await asyncio.wait_for(call.read(), 10)
            assert await called(session, address, early) == "early"
            assert not goes_on.done()
            await channel.close()
            await other.close()

    async def test_a_connection_from_before_carries_no_new_stream_of_a_dropped_ca(
        self, tiny_folder, session, fleet, tail, board
    ):
        authority = fleet.authority
        async with serving(tiny_folder, "--tls", tail) as address:
            channel, call, _ = await opened(session, address, board)
            authority.rotate()
            fleet.server()
            authority.finish()
            authority.export(tail)
            with pytest.raises(grpc.aio.AioRpcError, match="the CA of the certificate of board-7 counts here no more"):
                await asyncio.wait_for(call.read(), 20)
            with pytest.raises(grpc.aio.AioRpcError, match="the CA of the certificate of board-7 counts here no more"):
                await TailServiceStub(channel).ListModels(pb.ListModelsRequest())
            assert channel.get_state() is grpc.ChannelConnectivity.READY  # it is the same connection
            await channel.close()

    async def test_a_half_exchanged_certificate_changes_nothing(self, tiny_folder, session, fleet, tail, board, caplog):
        async with serving(tiny_folder, "--tls", tail) as address:
            whole = (tail / "tls.key").read_bytes()
            (tail / "tls.key").write_bytes((board / "tls.key").read_bytes())

            async def told():
                assert await called(session, address, board) == "board-7"
                return "the key is not the certificate's" in caplog.text

            await eventually(told, "the misfit is logged")
            (tail / "tls.key").write_bytes(whole)
            assert await called(session, address, board) == "board-7"


class TestTokens:
    @pytest.fixture
    def client(self, fleet, tmp_path):
        """What a client with a token has: the CA, and the token's file."""
        fleet.authority.export(tmp_path / "public", revoked=False)
        return tmp_path / "public"

    async def test_a_token_names_its_client_until_it_is_revoked(self, tiny_folder, session, tail, client, tmp_path):
        tokens = tmp_path / "tokens.txt"
        token, other = add_token(tokens, "board-7"), add_token(tokens, "board-8")
        assert token not in tokens.read_text()
        async with serving(tiny_folder, "--tls", tail, "--tokens", tokens) as address:
            tls = ClientTls.from_folder(client, token=token)
            assert await called(session, address, tls) == "board-7"
            channel, call, _ = await opened(session, address, tls)
            remove_tokens(tokens, "board-7")
            with pytest.raises(grpc.aio.AioRpcError, match="unknown here, or was revoked"):
                await asyncio.wait_for(call.read(), 10)
            with pytest.raises(RefusedError, match="unknown here, or was revoked"):
                await answer(session, address, tls)
            assert await called(session, address, ClientTls.from_folder(client, token=other)) == "board-8"
            await channel.close()

    async def test_without_a_token_no_service_answers_but_health(self, tiny_folder, session, tail, client, tmp_path):
        tokens = tmp_path / "tokens.txt"
        add_token(tokens, "board-7")
        refusals = Refusals()
        async with serving(tiny_folder, "--tls", tail, "--tokens", tokens, observer=refusals) as address:
            tls = ClientTls.from_folder(client)
            with pytest.raises(RefusedError, match="no token was shown"):
                await answer(session, address, tls)
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

    async def test_the_environment_gives_a_token_too(self, tiny_folder, session, tail, client, tmp_path, monkeypatch):
        token = add_token(tmp_path / "tokens.txt", "board-7")
        monkeypatch.setenv("NARROWCAST_TOKEN", token)
        async with serving(tiny_folder, "--tls", tail, "--tokens", tmp_path / "tokens.txt") as address:
            assert await called(session, address, client) == "board-7"


class TestLimits:
    @pytest.mark.parametrize(("streams", "connections"), [(2, 8192), (4096, 8192), (20_000, 40_000)])
    async def test_there_are_connections_for_all_streams(self, tiny_folder, tail, streams, connections, monkeypatch):
        given, make = {}, grpc.aio.server
        monkeypatch.setattr(grpc.aio, "server", lambda **more: given.update(more) or make(**more))
        for options in (), ("--tls", tail):
            async with serving(tiny_folder, *options, "--max-streams", streams):
                found = [value for name, value in given["options"] if name == "grpc.max_allowed_incoming_connections"]
                assert found == [connections]

    async def test_streams_are_counted_for_each_client_and_for_all(self, tiny_folder, session, fleet, tail, board):
        other = fleet.board("board-8")
        options = ("--tls", tail, "--max-client-streams", 1, "--max-streams", 2)
        async with serving(tiny_folder, *options) as address:
            channel, call, _ = await opened(session, address, board)
            with pytest.raises(grpc.aio.AioRpcError, match="the most that it may have"):
                await called(session, address, board)
            second, _, _ = await opened(session, address, other)
            with pytest.raises(grpc.aio.AioRpcError, match="the most for this server"):
                await called(session, address, fleet.board("board-9"))
            call.cancel()

            async def room():
                try:
                    return await called(session, address, board) == "board-7"
                except grpc.aio.AioRpcError:
                    return False

            await eventually(room, "a place is free again")
            await channel.close()
            await second.close()

    async def test_models_are_for_those_who_may_use_them(self, tiny_folder, session, tail, board, tmp_path):
        clients = tmp_path / "clients.toml"
        clients.write_text('[clients.board-7]\nmodels = ["other"]\n')
        async with serving(tiny_folder, "--tls", tail, "--clients", clients) as address:
            with pytest.raises(RefusedError, match="may not use the model 'tiny'; it may use: other"):
                await answer(session, address, board)
            clients.write_text("only_listed = true\n")

            async def shut_out():
                try:
                    await answer(session, address, board)
                except RefusedError as error:
                    return "is not among the clients" in str(error)
                return False

            await eventually(shut_out, "the new limits count")
