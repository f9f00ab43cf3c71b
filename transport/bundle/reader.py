"""Opening a bundle: nothing in it is believed before it is checked."""

from __future__ import annotations

import base64
import binascii
import hashlib
import stat
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Literal

import msgspec
import zstandard

from narrowcast.transport.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_PARTS,
    NETWORKS,
    Manifest,
    Part,
    PartKind,
    Precision,
    parse_manifest,
)
from narrowcast.transport.bundle.onnx_check import check_onnx
from narrowcast.transport.bundle.signing import PublicKey, find_key, trusted_keys
from narrowcast.transport.codec import Codec, open_codec
from narrowcast.transport.errors import (
    BadSignatureError,
    ManifestError,
    MissingPartError,
    NotABundleError,
    OversizedPartError,
    PartHashError,
    SurplusPartError,
    TablesError,
    UnsafePathError,
    UnsignedBundleError,
    UntrustedKeyError,
)
from narrowcast.transport.video.codec import VideoCodec

MANIFEST, SIGNATURE, PARTS = "manifest.json", "manifest.sig", "parts/"
MAX_SIGNATURE_BYTES = 4096
_CHUNK = 1 << 20
# What zipfile raises on archives that are damaged or made to mislead.
ZIP_ERRORS = (KeyError, OSError, EOFError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile)

OpenRole = Literal["device", "server", "any"]


class SignatureFile(msgspec.Struct, forbid_unknown_fields=True):
    """``manifest.sig``: base64 of the public key and of the signature."""

    algorithm: Literal["ed25519"]
    key: str
    signature: str


class Bundle:
    """A verified bundle. Made by :meth:`open`; parts are read, and checked again, when they are asked for.

    Attributes:
        path: the file.
        manifest: what it says about itself.
        signed_by: the trusted key that signed it; None for an unsigned bundle.
    """

    def __init__(self, path: Path, manifest: Manifest, signed_by: PublicKey | None, present: frozenset[str]) -> None:
        self.path = path
        self.manifest = manifest
        self.signed_by = signed_by
        self._present = present

    @classmethod
    def open(
        cls,
        path: str | Path,
        role: OpenRole = "any",
        *,
        trusted: Iterable[PublicKey] | None = None,
        allow_unsigned: bool = False,
    ) -> Bundle:
        """Opens and verifies a bundle.

        Args:
            path: the ``.ncb`` file.
            role: whose parts must be there: ``device``, ``server``, or ``any`` for none in particular.
            trusted: keys whose signatures count; those in the user's keys folder if None.
            allow_unsigned: take a bundle without a signature. A bad or untrusted signature is refused all the same.

        Raises:
            BundleError: one of its subclasses, by what is wrong.
            KeyFileError: a trusted key cannot be read.
        """
        path = Path(path)
        with open_zip(path) as archive:
            entries = check_entries(archive, path.name)
            raw = _read_stored(archive, entries.get(MANIFEST), MANIFEST, MAX_MANIFEST_BYTES, path.name)
            signed_by = _check_signature(archive, entries, raw, path.name, trusted, allow_unsigned)
            manifest = parse_manifest(raw, path.name)
            present = frozenset(name.removeprefix(PARTS) for name in entries if name.startswith(PARTS))
            bundle = cls(path, manifest, signed_by, present)
            bundle._check_parts(role)
            for part in manifest.parts:
                if part.name in present:
                    bundle._read(archive, part)
        if manifest.find("tables") is None and manifest.codec.name != "zstd":
            raise ManifestError(f"{path.name}: its codec is rans, and it lists no tables")
        return bundle

    def has(self, kind: PartKind, precision: Precision | None = None, tail: str | None = None) -> bool:
        """Whether the part is in this file."""
        part = self.manifest.find(kind, precision, tail)
        return part is not None and part.name in self._present

    def read(self, kind: PartKind, precision: Precision | None = None, tail: str | None = None) -> bytes:
        """A part's bytes, verified.

        Raises:
            MissingPartError: it is not in this file.
            BundleError: it was changed since the bundle was opened.
        """
        part = self.manifest.find(kind, precision, tail)
        if part is None or part.name not in self._present:
            exact = f"{kind} ({precision})" if precision else kind
            exact += f" of the tail {tail!r}" if tail else ""
            raise MissingPartError(f"{self.path.name} has no {exact} part; it has {', '.join(sorted(self._present))}")
        with open_zip(self.path) as archive:
            return self._read(archive, part)

    def codec(self) -> Codec:
        """The codec of the bundle's symbols, ready to use.

        Raises:
            BundleError: tables that do not fit, or another fingerprint than the manifest's.
        """
        kind: PartKind = "dictionary" if self.manifest.codec.name == "zstd" else "tables"
        data = self.read(kind) if self.manifest.find(kind) is not None else b""
        try:
            codec = open_codec(self.manifest.codec, data)
        except TablesError as error:
            raise ManifestError(f"{self.path.name}: {error}") from error
        if codec.fingerprint.hex() != self.manifest.fingerprint:
            raise ManifestError(f"{self.path.name}: the codec fingerprint in its manifest is not that of its tables")
        return codec

    def video(self) -> VideoCodec | None:
        """What codes frames by earlier ones, ready to use; None where the bundle has no video tables.

        Raises:
            BundleError: tables that do not fit.
        """
        if not self.has("video"):
            return None
        try:
            return VideoCodec(self.manifest.codec, self.read("video"))
        except TablesError as error:
            raise ManifestError(f"{self.path.name}: {error}") from error

    def stamp(self) -> tuple[int, int, int]:
        """Identifies the file's present state: inode, size and time of change."""
        seen = self.path.stat()
        return seen.st_ino, seen.st_size, seen.st_mtime_ns

    def _check_parts(self, role: OpenRole) -> None:
        listed = {part.name: part for part in self.manifest.parts}
        if surplus := sorted(self._present - listed.keys()):
            raise SurplusPartError(f"{self.path.name} holds {surplus[0]!r}, which its manifest does not list")
        needed = [p.name for p in listed.values() if role in p.roles and not p.optional]
        if missing := sorted(set(needed) - self._present):
            raise MissingPartError(f"{self.path.name} lacks {', '.join(missing)}, which a {role} needs")

    def _read(self, archive: zipfile.ZipFile, part: Part) -> bytes:
        try:
            with archive.open(PARTS + part.name) as packed:
                data = _unpack(packed, part, self.path.name)
        except ZIP_ERRORS as error:
            raise NotABundleError(f"{self.path.name}: its part {part.name} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise PartHashError(f"{self.path.name}: {part.name} is not the part that was signed (its SHA-256 differs)")
        if part.kind in NETWORKS:
            check_onnx(data, f"{self.path.name}: {part.name}")
        return data


def open_zip(path: Path) -> zipfile.ZipFile:
    """The bundle's archive.

    Raises:
        NotABundleError: no file, or no ZIP.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise NotABundleError(f"{path} is no file")
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise NotABundleError(f"no bundle {path}") from error
    except ZIP_ERRORS as error:
        raise NotABundleError(f"{path} is no bundle, or is truncated: {error}") from error


def check_entries(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name: stored, each once, none with a path other than ``parts/``."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        inner = info.filename.removeprefix(PARTS)
        # orig_filename: zipfile cuts names at a zero byte and turns backslashes around before we see them
        if info.orig_filename != info.filename or any(c in inner for c in "/\\:\0") or inner.startswith("."):
            raise UnsafePathError(f"{name} holds {info.orig_filename!r}; names in a bundle have no paths in them")
        if info.filename in entries:
            raise NotABundleError(f"{name} holds {info.filename!r} twice")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise NotABundleError(f"{name}: its entry {info.filename!r} is not stored as it is")
        if not info.filename.startswith(PARTS) and info.filename not in (MANIFEST, SIGNATURE):
            raise SurplusPartError(f"{name} holds {info.filename!r}, which is no part of a bundle")
        entries[info.filename] = info
    if len(entries) > MAX_PARTS + 2:
        raise NotABundleError(f"{name} holds {len(entries)} entries; the limit is {MAX_PARTS + 2}")
    return entries


def _read_stored(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None, what: str, limit: int, name: str) -> bytes:
    if info is None:
        raise NotABundleError(f"{name} is no bundle: it has no {what}")
    if info.file_size > limit:
        raise OversizedPartError(f"{name}: its {what} has {info.file_size} bytes; the limit is {limit}")
    try:
        return archive.read(info)
    except ZIP_ERRORS as error:
        raise NotABundleError(f"{name}: its {what} cannot be read: {error}") from error


def _check_signature(
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    manifest: bytes,
    name: str,
    trusted: Iterable[PublicKey] | None,
    allow_unsigned: bool,
) -> PublicKey | None:
    if SIGNATURE not in entries:
        if allow_unsigned:
            return None
        raise UnsignedBundleError(f"{name} is not signed; sign it (narrowcast keys sign), or pass --allow-unsigned")
    raw = _read_stored(archive, entries[SIGNATURE], SIGNATURE, MAX_SIGNATURE_BYTES, name)
    try:
        found = msgspec.json.decode(raw, type=SignatureFile)
        key = PublicKey(base64.b64decode(found.key, validate=True))
        signature = base64.b64decode(found.signature, validate=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error, ValueError) as error:
        raise BadSignatureError(f"{name}: its signature cannot be read: {error}") from error
    try:
        key.verify(manifest, signature)
    except BadSignatureError as error:
        raise BadSignatureError(f"{name}: {error}") from error
    known = find_key(key.raw, trusted_keys() if trusted is None else trusted)
    if known is None:
        raise UntrustedKeyError(
            f"{name} is signed with the key {key.id}, which is not trusted here; if it should be, "
            "get the signer's .pub file and run: narrowcast keys trust FILE.pub"
        )
    return known


def _unpack(packed: IO[bytes], part: Part, name: str) -> bytes:
    """The part's bytes; reads no more than one byte beyond what it should have."""
    chunks, left = [], part.size_bytes + 1
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed) as reader:
            while left and (chunk := reader.read(min(left, _CHUNK))):
                chunks.append(chunk)
                left -= len(chunk)
    except zstandard.ZstdError as error:
        raise PartHashError(f"{name}: {part.name} does not unpack: {error}") from error
    if not left:
        raise OversizedPartError(f"{name}: {part.name} unpacks to more than the {part.size_bytes} bytes that it should")
    return b"".join(chunks)
