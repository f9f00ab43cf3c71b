"""The operators' HTTP side, by raw sockets: what it refuses, and whom it does not wait for."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from narrowcast.cli import serve
from narrowcast.cli.serving.operations import insecure_warnings as warnings_of
from narrowcast.tail.access_files import Watched
from narrowcast.tail.drift import DriftWatch
from narrowcast.tail.drift.watch import CameraKey
from narrowcast.tail.errors import ListenError
from narrowcast.tail.models import ModelTable
from narrowcast.tail.operations import http
from narrowcast.tail.operations.control import Control
from narrowcast.tail.operations.http import HttpServer
from narrowcast.tail.operations.https import ServerTls
from narrowcast.tail.operations.tally import Tally
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.pki.tokens import add_token, read_tokens, remove_tokens
from narrowcast.transport.rpc.channels import Address


class State:
    name, ready = "serving", True


LOCAL = Address("127.0.0.1", 0)


def made(listen: Address = LOCAL, **options) -> HttpServer:
    return HttpServer(
        listen, Tally(ModelTable()), state=lambda: State.name, ready=lambda: State.ready,
        **options,
    )  # fmt: skip


@pytest.fixture
async def address():
    server = made()
    yield await server.start("127.0.0.1:7433")
    await server.stop()


@pytest.fixture
async def impatient(monkeypatch):
    """The address of a server that waits for nobody."""
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(http, "WRITE_SECONDS", 0.3)
    server = made()
    yield await server.start("127.0.0.1:7433")
    await server.stop()


async def ask(address: Address, request: bytes, tls: ssl.SSLContext | None = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes until the connection ends."""
    reader, writer = await asyncio.open_connection(*address, ssl=tls)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body


def get(path: str, host: str = "127.0.0.1:80", *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def test_everything_has_a_strict_policy(address):
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/metrics", "/healthz", "/readyz", "/api/status"):
        status, headers, body = await ask(address, get(path))
        assert status == 200, path
        assert body
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["server"] == "narrowcast"
    assert json.loads((await ask(address, get("/api/status")))[2])["schema"] == 1


async def test_readiness_is_not_health(address, monkeypatch):
    monkeypatch.setattr(State, "ready", False)
    monkeypatch.setattr(State, "name", "draining")
    assert (await ask(address, get("/healthz")))[0] == 200
    status, _, body = await ask(address, get("/readyz"))
    assert (status, body) == (503, b"not ready: draining\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/../../etc/passwd"), 404),
        (get("/operations/http.py"), 404),
        (get("/metrics").replace(b"GET", b"POST"), 405),
        (get("/metrics", "127.0.0.1", "Content-Length: 5") + b"hello", 413),
        (get("/metrics", "127.0.0.1", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", 413),
        (get("/", "evil.example:7480"), 403),  # a page of another origin, by DNS rebinding
        (get("/", "localhost:7480"), 200),
        (get("/", "[::1]:7480"), 200),
        (get("/" + "a" * 5000), 400),
        (get("/", "127.0.0.1", "X: " + "a" * 10_000), 400),
        (get("/", "127.0.0.1", *(f"X{k}: 1" for k in range(200))), 400),
        (b"\x16\x03\x01 this is not HTTP\r\n\r\n", 400),
        (b"CONNECT a:b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ],
)
async def test_requests_that_are_refused(address, request_bytes, status, caplog):
    assert (await ask(address, request_bytes))[0] == status
    assert caplog.text == ""  # whoever reaches the port could fill the disk


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=x.y", "text/plain;;;q=z; version=\u00ff"])
async def test_metrics_for_those_who_accept_what_is_nothing(address, accept):
    status, headers, body = await ask(address, get("/metrics", "127.0.0.1", f"Accept: {accept}"))
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert b"narrowcast_clients 0.0" in body


async def test_a_client_that_leaves_early_is_no_error(address, caplog):
    _, writer = await asyncio.open_connection(*address)
    writer.write(get("/metrics"))
    writer.transport.abort()
    assert (await ask(address, get("/healthz")))[0] == 200
    assert (await ask(address, get("/metrics")))[0] == 200  # one at a time: the other one is over
    assert caplog.text == ""


async def test_a_client_that_drips_its_request_is_dropped(impatient):
    reader, writer = await asyncio.open_connection(*impatient)
    closed = asyncio.create_task(reader.read())
    for byte in get("/metrics") * 1000:
        writer.write(bytes([byte]))
        done, _ = await asyncio.wait([closed], timeout=0.02)
        if done:
            break
    assert closed.done()
    if not isinstance(closed.exception(), ConnectionResetError):  # where a byte crossed the end
        assert closed.result() == b""
    writer.close()


async def test_a_client_that_says_nothing_is_dropped(impatient):
    reader, writer = await asyncio.open_connection(*impatient)
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()


async def test_a_client_that_does_not_read_is_dropped(impatient):
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, tuple(impatient))
        many = get("/page.js").replace(b"Connection: close", b"Connection: keep-alive") * 5000
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # once the server has had enough of it
            await asyncio.wait_for(loop.sock_sendall(deaf, many * 20), 120)
    assert (await ask(impatient, get("/healthz")))[0] == 200


async def test_connections_are_bounded(address, monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)
    waiting = [await asyncio.open_connection(*address) for _ in range(3)]
    with pytest.raises((OSError, IndexError)):  # reset, or ended without a word
        await ask(address, get("/healthz"))
    for _, writer in waiting:
        writer.close()
    for _ in range(500):
        try:
            assert (await ask(address, get("/healthz")))[0] == 200
            break
        except (OSError, IndexError):
            await asyncio.sleep(0.01)
    else:
        raise AssertionError("it takes no connection although it has room again")


async def test_beyond_this_machine_it_wants_to_be_told():
    with pytest.raises(ListenError, match="--insecure"):
        made(Address("0.0.0.0", 0))
    server = made(Address("0.0.0.0", 0), insecure=True)
    address = await server.start("127.0.0.1:7433")
    try:  # any name may be asked for there
        assert (await ask(Address("127.0.0.1", address.port), get("/healthz", "tail.example")))[0] == 200
    finally:
        await server.stop()


class TestTls:
    @pytest.fixture
    def folder(self, tmp_path):
        """Files of one authority, for server and client alike."""
        if shutil.which("openssl") is None:
            pytest.skip("no openssl on this machine")
        return certificates(tmp_path, "server")

    def asking(self, folder, *, known: bool) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        if known:
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        return context

    async def test_only_clients_with_a_certificate_are_answered(self, folder):
        server = made(Address("0.0.0.0", 0), tls=ServerTls(folder))
        address = Address("127.0.0.1", (await server.start("127.0.0.1:7433")).port)
        try:
            status, _, body = await ask(address, get("/healthz"), self.asking(folder, known=True))
            assert (status, body) == (200, b"ok\n")
            with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):
                await ask(address, get("/healthz"), self.asking(folder, known=False))
            with pytest.raises((ConnectionError, IndexError)):
                await ask(address, get("/healthz"))
        finally:
            await server.stop()

    async def test_a_new_certificate_is_taken_up_and_a_bad_one_is_not(self, folder, tmp_path, caplog):
        tls = ServerTls(folder)
        server = made(tls=tls)
        address = await server.start("127.0.0.1:7433")
        try:
            before = await serial(address, self.asking(folder, known=True))
            (tmp_path / "new").mkdir()
            new = certificates(tmp_path / "new", "server", authority=folder)
            for name in ("tls.crt", "tls.key"):
                (new / name).replace(folder / name)
            tls.follow()
            after = await serial(address, self.asking(folder, known=True))
            assert before != after
            good = self.asking(folder, known=True)
            (folder / "tls.crt").write_text("no certificate")
            tls.follow()
            assert "goes on with its certificate" in caplog.text
            assert await serial(address, good) == after
        finally:
            await server.stop()

    async def test_a_certificate_that_comes_before_its_key_waits_for_it(self, folder, tmp_path, caplog):
        tls = ServerTls(folder)
        server = made(tls=tls)
        address = await server.start("127.0.0.1:7433")
        try:
            good = self.asking(folder, known=True)
            before = await serial(address, good)
            (tmp_path / "new").mkdir()
            new = certificates(tmp_path / "new", "server", authority=folder)
            (new / "tls.crt").replace(folder / "tls.crt")
            tls.follow()
            assert "goes on with its certificate" in caplog.text
            assert await serial(address, good) == before
            (new / "tls.key").replace(folder / "tls.key")
            tls.follow()
            assert await serial(address, good) != before
        finally:
            await server.stop()

    @pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
    def test_files_that_cannot_be_used_are_errors(self, folder, name):
        (folder / name).write_text("nonsense")
        with pytest.raises(ConfigError, match="cannot be used for TLS"):
            ServerTls(folder)
        (folder / name).unlink()
        with pytest.raises(ConfigError, match=f"no .*{name}"):
            ServerTls(folder)


async def serial(address: Address, context: ssl.SSLContext) -> int:
    """Of the certificate that the server shows."""
    reader, writer = await asyncio.open_connection(*address, ssl=context)
    found = writer.get_extra_info("peercert")["serialNumber"]
    writer.write(get("/healthz"))
    assert b"200" in await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return found


def certificates(folder: Path, name: str, authority: Path | None = None) -> Path:
    """``ca.crt``, ``tls.crt`` and ``tls.key``, made by OpenSSL; the authority's key stays in its folder as ``ca.key``."""

    def openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=60)

    made_by = authority or folder
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    if authority is None:
        openssl(
            "req",
            "-x509",
            *key,
            "-keyout",
            folder / "ca.key",
            "-out",
            folder / "ca.crt",
            "-subj",
            "/CN=test CA",
            "-days",
            2,
        )
    openssl("req", *key, "-keyout", folder / "tls.key", "-out", folder / "tls.csr", "-subj", f"/CN={name}")
    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(
        "x509", "-req", "-in", folder / "tls.csr", "-CA", made_by / "ca.crt", "-CAkey", made_by / "ca.key", "-days", 2,
        "-out", folder / "tls.crt", "-extfile", folder / "extensions", "-CAcreateserial",
    )  # fmt: skip
    return folder


async def test_a_port_that_is_taken_is_an_error(address):
    with pytest.raises(ListenError, match="--http"):
        await made(address).start("127.0.0.1:7433")


class TestAccepting:
    """The one thing that can be changed, by operators with a token."""

    STREAM = b"s" * 16
    CAMERA = f"client=gate&stream_id={STREAM.hex()}"

    @pytest.fixture
    def tokens(self, tmp_path):
        """The file, and a token that is in it."""
        return tmp_path / "operators", add_token(tmp_path / "operators", "alice")

    @pytest.fixture
    async def control(self, tokens):
        watch = DriftWatch()
        watch._detector(CameraKey("gate", "tiny", bytes(16), self.STREAM))
        server = made(control=Control(Watched([tokens[0]], lambda: read_tokens(tokens[0]), "tokens"), watch))
        yield await server.start("127.0.0.1:7433")
        await server.stop()

    @staticmethod
    def post(query: str, *headers: str) -> bytes:
        return get(f"/api/drift/accept?{query}", "127.0.0.1:80", *headers).replace(b"GET", b"POST", 1)

    async def test_with_a_token(self, control, tokens):
        shown = f"Authorization: Bearer {tokens[1]}"
        assert (await ask(control, self.post(self.CAMERA, shown)))[0] == 200
        for query in ("", "client=gate", f"client=gate&stream_id={'g' * 32}", f"client=&stream_id={'0' * 32}"):
            status, _, body = await ask(control, self.post(query, shown))
            assert (status, b"32 hexadecimal digits" in body) == (400, True)
        assert (await ask(control, self.post(f"client=other&stream_id={'0' * 32}", shown)))[0] == 404
        assert (await ask(control, get(f"/api/drift/accept?{self.CAMERA}", "127.0.0.1:80", shown)))[0] == 405

    async def test_without_one_that_counts(self, control, tokens):
        wrong = [(), ("Authorization: Bearer nct_" + "x" * 43,), ("Authorization: Bearer ",), ("Cookie: token=x",)]
        wrong.append((f"Authorization: Basic {tokens[1]}",))
        for headers in wrong:
            status, answered, _ = await ask(control, self.post(f"{self.CAMERA}&token={tokens[1]}", *headers))
            assert (status, answered["www-authenticate"]) == (401, "Bearer")

    async def test_a_header_that_is_no_text_is_no_token_and_writes_no_traceback(self, control, caplog):
        request = self.post(self.CAMERA, "Authorization: Bearer X").replace(b"Bearer X", b"Bearer \xff")
        assert (await ask(control, request))[0] == 401
        assert not caplog.records

    async def test_a_token_that_was_revoked_while_it_runs(self, control, tokens):
        remove_tokens(tokens[0], "alice")
        shown = f"Authorization: Bearer {tokens[1]}"
        for _ in range(500):
            if (await ask(control, self.post(self.CAMERA, shown)))[0] == 401:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the token still counts")

    async def test_nothing_can_be_changed_where_no_operator_is_known(self, address):
        assert (await ask(address, self.post(self.CAMERA)))[0] == 404

    def test_tokens_do_not_go_over_a_network_unencrypted(self, tokens):
        control = Control(Watched([tokens[0]], lambda: read_tokens(tokens[0]), "tokens"), None)
        with pytest.raises(ListenError, match="--http-tokens needs --http-tls"):
            made(Address("0.0.0.0", 0), insecure=True, control=control)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], []),
        (["--tls", "x"], []),
        (["--insecure"], ["anyone who can reach this port"]),
        (["--insecure", "--tls", "x"], ["changes nothing here"]),
        (["--insecure", "--tls", "x", "--http", "127.0.0.1:0"], ["changes nothing here"]),
        (["--insecure", "--tls", "x", "--http", "0.0.0.0:0", "--http-tls", "y"], ["changes nothing here"]),
        (["--insecure", "--tls", "x", "--http", "0.0.0.0:0"], ["can reach 0.0.0.0:0 over HTTP"]),
        (["--insecure", "--http", "0.0.0.0:0"], ["anyone who can reach this port", "over HTTP"]),
    ],
)
def test_what_insecure_leaves_open_is_said(options, said):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    told = warnings_of(parser.parse_args(["--bundles", "x", *options]))
    assert len(told) == len(said)
    assert all(part in line for part, line in zip(said, told, strict=True))
