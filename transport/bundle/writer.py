"""Writing bundles: whole, signed, or the subset that one role needs. A file appears complete or not at all."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import zstandard

from narrowcast.transport.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    Part,
    PartKind,
    Precision,
    Role,
    parse_manifest,
)
from narrowcast.transport.bundle.reader import (
    MANIFEST,
    PARTS,
    SIGNATURE,
    ZIP_ERRORS,
    Bundle,
    SignatureFile,
    check_entries,
    open_zip,
)
from narrowcast.transport.bundle.signing import SecretKey
from narrowcast.transport.errors import BundleError, NotABundleError, OversizedPartError
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import to_json

PART_ZSTD_LEVEL = 10
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same parts give the same bytes


def describe_part(
    name: str,
    data: bytes,
    kind: PartKind,
    roles: list[Role],
    *,
    optional: bool = False,
    precision: Precision | None = None,
    tail: str | None = None,
) -> Part:
    """The manifest's entry for a part with these bytes."""
    digest = hashlib.sha256(data).hexdigest()
    return Part(
        name=name, kind=kind, roles=roles, size_bytes=len(data), sha256=digest, optional=optional,
        precision=precision, tail=tail,
    )  # fmt: skip


def write_bundle(path: Path, manifest: Manifest, parts: Mapping[str, bytes], key: SecretKey | None) -> None:
    """Writes a bundle.

    Args:
        path: where; an existing file is replaced at once when the new one is complete.
        manifest: lists exactly ``parts``.
        parts: bytes by part name.
        key: signs the manifest; None leaves the bundle unsigned.

    Raises:
        OversizedPartError: the manifest is larger than any reader takes.
        BundleError: the manifest and the parts do not go together.
        OSError: the file cannot be written.
    """
    raw = to_json(manifest, indent=2)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise OversizedPartError(
            f"{manifest.name}: its {MANIFEST} would have {len(raw)} bytes; the limit is {MAX_MANIFEST_BYTES}"
        )
    parse_manifest(raw, path.name)
    if {part.name for part in manifest.parts} != parts.keys():
        raise BundleError(f"{path.name}: the manifest lists other parts than are to be written")
    packer = zstandard.ZstdCompressor(level=PART_ZSTD_LEVEL)
    entries = {MANIFEST: raw}
    if key is not None:
        entries[SIGNATURE] = _signature(raw, key)
    entries |= {PARTS + name: packer.compress(data) for name, data in parts.items()}
    _write(path, entries)


def sign_bundle(path: Path, key: SecretKey) -> None:
    """Signs the bundle at ``path``, in the place of any earlier signature; everything else stays byte for byte.

    Raises:
        BundleError: it is no sound bundle; who signed it before does not matter.
    """
    with open_zip(path) as archive:
        entries = {name: _entry(archive, info, path) for name, info in check_entries(archive, path.name).items()}
    entries.pop(SIGNATURE, None)
    if MANIFEST not in entries:
        raise NotABundleError(f"{path.name} is no bundle: it has no {MANIFEST}")
    signed = {MANIFEST: entries.pop(MANIFEST), SIGNATURE: b"", **entries}
    signed[SIGNATURE] = _signature(signed[MANIFEST], key)
    candidate = path.with_name(f".{path.name}.signed")
    _write(candidate, signed)
    try:
        Bundle.open(candidate, trusted=[key.public])
        with candidate.open("rb") as checked, replacing(path) as out:  # owner, rights and links stay
            shutil.copyfileobj(checked, out)
    finally:
        candidate.unlink(missing_ok=True)


def write_subset(bundle: Bundle, role: Role, path: Path, *, optional: bool = False) -> None:
    """Writes what ``role`` needs of ``bundle``, under the same manifest and signature.

    Args:
        bundle: a verified bundle.
        role: whose parts.
        path: where.
        optional: its optional parts as well.
    """
    wanted = {
        PARTS + part.name for part in bundle.manifest.parts if role in part.roles and (optional or not part.optional)
    }
    with open_zip(bundle.path) as archive:
        names = [info.filename for info in archive.infolist()]
        kept = [name for name in names if not name.startswith(PARTS) or name in wanted]
        _write(path, {name: _entry(archive, archive.getinfo(name), bundle.path) for name in kept})


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    try:
        return archive.read(info)
    except ZIP_ERRORS as error:
        raise NotABundleError(f"{path.name} is damaged: {error}") from error


def _signature(manifest: bytes, key: SecretKey) -> bytes:
    file = SignatureFile(
        algorithm="ed25519",
        key=base64.b64encode(key.public.raw).decode(),
        signature=base64.b64encode(key.sign(manifest)).decode(),
    )
    return msgspec.json.encode(file)


def _write(path: Path, entries: Mapping[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    with replacing(path) as out:
        out.write(buffer.getbuffer())
