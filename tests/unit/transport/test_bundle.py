"""The bundle: what it holds, and one test for each thing that it refuses."""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard
from support import bundles
from support.bundles import KEY, Made, make, open_made

from narrowcast.transport.bundle import (
    Bundle,
    OutputSpec,
    PublicKey,
    SecretKey,
    describe_part,
    sign_bundle,
    write_subset,
)
from narrowcast.transport.bundle.manifest import MAX_MANIFEST_BYTES
from narrowcast.transport.errors import (
    BadSignatureError,
    BundleError,
    ManifestError,
    MissingPartError,
    NewerSchemaError,
    NotABundleError,
    OversizedPartError,
    PartHashError,
    SurplusPartError,
    UnsafePathError,
    UnsignedBundleError,
    UntrustedKeyError,
)
from narrowcast.transport.structs import to_json
from narrowcast.transport.tasks import ClassifyTask
from narrowcast.transport.tasks.settings import MAX_CLASSES

STRANGER = SecretKey(b"\x07" * 32, "stranger")


@pytest.fixture
def file(tmp_path) -> Path:
    """A sound bundle."""
    return make().write(tmp_path / "model.ncb")


def entries(file: Path) -> dict[str, bytes]:
    """The archive's entries."""
    with zipfile.ZipFile(file) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def rewrite(file: Path, contents: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    """Writes an archive with these entries."""
    pairs = contents.items() if isinstance(contents, dict) else contents
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in pairs:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file


def resigned(file: Path, manifest: dict, key: SecretKey = KEY) -> Path:
    """Replaces the manifest and signs it: a signer's mistakes must be caught as well as a stranger's changes."""
    import base64

    raw = json.dumps(manifest).encode()
    signature = {
        "algorithm": "ed25519",
        "key": base64.b64encode(key.public.raw).decode(),
        "signature": base64.b64encode(key.sign(raw)).decode(),
    }
    return rewrite(file, {**entries(file), "manifest.json": raw, "manifest.sig": json.dumps(signature).encode()})


def manifest_of(file: Path) -> dict:
    """The manifest as plain data."""
    return json.loads(entries(file)["manifest.json"])


def test_a_bundle_holds_what_was_put_in(file):
    bundle = open_made(file)
    assert bundle.manifest == make().manifest
    assert bundle.signed_by == KEY.public
    assert bundle.read("tail") == bundles.tail_model()
    assert bundle.codec().fingerprint.hex() == bundle.manifest.fingerprint
    assert bundle.has("head", "fp32")
    assert not bundle.has("head", "int8")


def test_the_same_parts_give_the_same_file(tmp_path):
    assert make().write(tmp_path / "a.ncb").read_bytes() == make().write(tmp_path / "b.ncb").read_bytes()


@pytest.mark.parametrize(("role", "kept", "left"), [("device", "head", "tail"), ("server", "tail", "head")])
def test_a_role_gets_its_parts_under_the_same_signature(file, tmp_path, role, kept, left):
    subset = tmp_path / "subset.ncb"
    write_subset(open_made(file), role, subset)
    bundle = open_made(subset, role)
    assert bundle.has(kept)
    assert not bundle.has(left)
    assert bundle.signed_by == KEY.public
    assert subset.stat().st_size < file.stat().st_size
    assert entries(subset)["manifest.json"] == entries(file)["manifest.json"]
    with pytest.raises(MissingPartError, match=f"has no {left}"):
        bundle.read(left)


def test_optional_parts_may_be_left_out(tmp_path):
    data = bundles.tail_model()
    part = describe_part("whole.onnx", data, "whole", ["device", "server"], optional=True)
    full = make().with_part(part, data).write(tmp_path / "full.ncb")
    for optional in (False, True):
        write_subset(open_made(full), "device", tmp_path / "subset.ncb", optional=optional)
        assert open_made(tmp_path / "subset.ncb", "device").has("whole") == optional


def test_opening_needs_no_torch_and_no_onnx(file, keys_folder):
    import subprocess
    import sys

    KEY.public.write(keys_folder / "trusted" / "test.pub")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        f"from narrowcast.transport.bundle import Bundle; print(Bundle.open({str(file)!r}, 'device').manifest.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("tiny\n", "")


# One class, one test each.


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip" * 100])
def test_not_a_bundle(tmp_path, content):
    path = tmp_path / "x.ncb"
    path.write_bytes(content)
    with pytest.raises(NotABundleError, match=r"x\.ncb is no bundle"):
        open_made(path)


def test_no_such_file(tmp_path):
    with pytest.raises(NotABundleError, match="no bundle"):
        open_made(tmp_path / "missing.ncb")
    with pytest.raises(NotABundleError, match="is no file"):
        open_made(tmp_path)


def test_every_truncation_is_refused(file):
    data = file.read_bytes()
    for end in range(0, len(data), 7):
        file.write_bytes(data[:end])
        with pytest.raises(BundleError):
            open_made(file)


def test_flipped_bits_are_refused_or_harmless(file):
    """A flip may lie where nothing reads (a time stamp in the archive's directory); what is read is what was signed."""
    data, made = file.read_bytes(), make()
    random = np.random.default_rng(0)
    harmless = 0
    for position in random.integers(0, len(data) * 8, 400):
        bent = bytearray(data)
        bent[position // 8] ^= 1 << int(position) % 8
        file.write_bytes(bytes(bent))
        try:
            bundle = open_made(file, "device")  # as a board does: it misses what a bent directory hides
        except BundleError:
            continue
        harmless += 1
        assert bundle.manifest == made.manifest
        assert bundle.read("head") == made.contents["head.onnx"]
    assert harmless < 40


def test_compressed_entries_are_refused(file):
    with pytest.raises(NotABundleError, match="not stored as it is"):
        open_made(rewrite(file, entries(file), zipfile.ZIP_DEFLATED))


def test_an_entry_twice_is_refused(file):
    pairs = list(entries(file).items())
    with pytest.warns(UserWarning, match="Duplicate"):
        rewrite(file, [*pairs, pairs[-1]])
    with pytest.raises(NotABundleError, match="twice"):
        open_made(file)


def test_an_archive_without_a_manifest_is_no_bundle(file):
    found = entries(file)
    del found["manifest.json"]
    with pytest.raises(NotABundleError, match=r"no manifest\.json"):
        open_made(rewrite(file, found))


@pytest.mark.parametrize(
    "name", ["../evil", "parts/../../evil", "/etc/passwd", "parts/a/b", "parts\\evil", "C:evil", "parts/.hidden"]
)
def test_path_tricks(file, name):
    with pytest.raises(UnsafePathError, match="no paths in them"):
        open_made(rewrite(file, {**entries(file), name: b"x"}))


def test_a_name_that_ends_at_a_zero_byte_for_some_readers(file):
    rewrite(file, {**entries(file), "parts/tables?.sh": b"x"})
    file.write_bytes(file.read_bytes().replace(b"tables?.sh", b"tables\0.sh"))
    with pytest.raises(UnsafePathError, match="no paths in them"):
        open_made(file)


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "", "x" * 101])
def test_path_tricks_in_the_manifest(file, name):
    manifest = manifest_of(file)
    manifest["parts"][0]["name"] = name
    with pytest.raises(UnsafePathError, match="no paths in them"):
        open_made(resigned(file, manifest))


def test_a_newer_schema(file):
    with pytest.raises(NewerSchemaError, match="schema 2; this release reads 1"):
        open_made(resigned(file, {**manifest_of(file), "schema": 2, "something": "new"}))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 0},
        {"schema": "1"},
        {"name": "a/b"},
        {"release": 0},
        {"extra": 1},
        {"fingerprint": "x"},
        {"parts": 3},
        {"input": {}},
    ],
    ids=str,
)
def test_a_manifest_that_is_none(file, change):
    with pytest.raises(ManifestError):
        open_made(resigned(file, {**manifest_of(file), **change}))


@pytest.mark.parametrize("field", ["name", "fingerprint", "parts", "codec", "tails"])
def test_no_value_of_a_manifest_ends_in_a_line_break(file, field):
    manifest = manifest_of(file)
    if field == "parts":
        manifest["parts"][0]["sha256"] += "\n"
    elif field == "codec":
        manifest["codec"]["quantizer"] += "\n"
    elif field == "tails":
        manifest["tails"] = [{"name": "ground\n", "outputs": []}]
    else:
        manifest[field] += "\n"
    with pytest.raises(ManifestError, match="matching regex"):
        open_made(resigned(file, manifest))


def test_two_parts_of_one_name(file):
    manifest = manifest_of(file)
    manifest["parts"].append(manifest["parts"][0])
    with pytest.raises(ManifestError, match="same name"):
        open_made(resigned(file, manifest))


def test_a_manifest_over_its_limit(file):
    with pytest.raises(OversizedPartError, match=r"manifest\.json"):
        open_made(rewrite(file, {**entries(file), "manifest.json": b" " * MAX_MANIFEST_BYTES + b"{}"}))


def test_a_manifest_over_its_limit_is_not_written(tmp_path):
    made = make(figures={"much": "x" * MAX_MANIFEST_BYTES})
    with pytest.raises(
        OversizedPartError, match=r"^tiny: its manifest\.json would have 8\d+ bytes; the limit is 8388608"
    ):
        made.write(tmp_path / "model.ncb")
    assert not list(tmp_path.iterdir())


def test_a_manifest_has_room_for_the_names_of_as_many_classes_as_a_task_may_have(tmp_path):
    names = [f"{number:040}" for number in range(MAX_CLASSES)]
    task = ClassifyTask(classes=names)
    outputs = [OutputSpec(name="output", dtype="float32", shape=[MAX_CLASSES])]
    manifest = msgspec.structs.replace(
        make().manifest, task=task, outputs=outputs, recipe={"task": msgspec.to_builtins(task)}
    )
    opened = open_made(Made(manifest, make().contents).write(tmp_path / "model.ncb"))
    assert opened.manifest.task == task


def test_a_missing_part(file):
    found = entries(file)
    del found["parts/head.onnx"]
    rewrite(file, found)
    open_made(file, "server")
    open_made(file, "any")
    with pytest.raises(MissingPartError, match=r"lacks head\.onnx, which a device needs"):
        open_made(file, "device")


@pytest.mark.parametrize("name", ["parts/extra.onnx", "readme.txt"])
def test_a_surplus_part(file, name):
    with pytest.raises(SurplusPartError, match=name.removeprefix("parts/")):
        open_made(rewrite(file, {**entries(file), name: b"x"}))


@pytest.mark.parametrize("part", ["head.onnx", "tail.onnx", "tables"])
def test_a_wrong_hash(file, part):
    bent = bytearray(make().contents[part])
    bent[-1] ^= 1
    packed = zstandard.ZstdCompressor().compress(bytes(bent))
    with pytest.raises(PartHashError, match=part):
        open_made(rewrite(file, {**entries(file), f"parts/{part}": packed}))


def test_a_part_that_does_not_unpack(file):
    with pytest.raises(PartHashError, match="does not unpack"):
        open_made(rewrite(file, {**entries(file), "parts/tables": b"not zstandard"}))


def test_a_part_changed_after_opening_is_noticed(file):
    bundle = open_made(file)
    rewrite(file, {**entries(file), "parts/tables": zstandard.ZstdCompressor().compress(b"x" * 116)})
    with pytest.raises(PartHashError):
        bundle.read("tables")


def test_a_zip_bomb(file):
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(300_000_000))
    assert len(bomb) < 100_000
    with pytest.raises(OversizedPartError, match="unpacks to more than"):
        open_made(rewrite(file, {**entries(file), "parts/tables": bomb}))


def test_a_part_that_claims_too_much(file):
    manifest = manifest_of(file)
    manifest["parts"][0]["size_bytes"] = 2**40
    with pytest.raises(ManifestError, match="size_bytes"):
        open_made(resigned(file, manifest))


def test_no_signature(file):
    make().write(file, key=None)
    with pytest.raises(UnsignedBundleError, match="--allow-unsigned"):
        open_made(file)
    assert Bundle.open(file, trusted=[], allow_unsigned=True).signed_by is None


def test_a_wrong_signature(file):
    found = entries(file)
    changed = found["manifest.json"].replace(b'"release": 1', b'"release": 9')
    assert changed != found["manifest.json"]
    with pytest.raises(BadSignatureError, match="changed after signing"):
        open_made(rewrite(file, {**found, "manifest.json": changed}))


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b'{"algorithm":"none","key":"","signature":""}',
        b'{"algorithm":"ed25519","key":"AA==","signature":"AA=="}',
    ],
)
def test_a_signature_that_is_none_is_wrong_even_where_unsigned_bundles_are_allowed(file, signature):
    rewrite(file, {**entries(file), "manifest.sig": signature})
    with pytest.raises(BadSignatureError):
        Bundle.open(file, trusted=[KEY.public], allow_unsigned=True)


def test_a_strangers_key(file):
    with pytest.raises(UntrustedKeyError, match="narrowcast keys trust"):
        Bundle.open(make().write(file, STRANGER), trusted=[KEY.public], allow_unsigned=True)


def test_trusted_keys_are_those_of_the_keys_folder(file, keys_folder):
    with pytest.raises(UntrustedKeyError):
        Bundle.open(file)
    KEY.public.write(keys_folder / "trusted" / "test.pub")
    assert Bundle.open(file).signed_by == KEY.public


def test_a_fingerprint_that_is_not_the_tables(file):
    manifest = {**manifest_of(file), "fingerprint": "0" * 32}
    with pytest.raises(ManifestError, match="fingerprint"):
        open_made(resigned(file, manifest)).codec()


def test_tables_that_are_none(tmp_path):
    part = describe_part("tables", b"NCTB nonsense...", "tables", ["device", "server"])
    file = make().with_part(part, b"NCTB nonsense...").write(tmp_path / "m.ncb")
    with pytest.raises(ManifestError, match="tables"):
        open_made(file).codec()


def test_a_rans_bundle_without_tables(tmp_path):
    with pytest.raises(ManifestError, match="lists no tables"):
        open_made(make().without("tables").write(tmp_path / "m.ncb"))


def test_signing_anew(tmp_path):
    file = make().write(tmp_path / "m.ncb", STRANGER)
    before = entries(file)
    sign_bundle(file, KEY)
    after = entries(file)
    assert open_made(file).signed_by == KEY.public
    del before["manifest.sig"], after["manifest.sig"]
    assert before == after
    assert [path.name for path in tmp_path.iterdir() if path.name != "keys"] == ["m.ncb"]


def test_signing_leaves_links_and_rights_as_they_are(tmp_path):
    file = make().write(tmp_path / "m.ncb", STRANGER)
    file.chmod(0o640)
    (tmp_path / "current.ncb").symlink_to("m.ncb")
    before = os.umask(0o077)
    try:
        sign_bundle(tmp_path / "current.ncb", KEY)
    finally:
        os.umask(before)
    assert (tmp_path / "current.ncb").is_symlink()
    assert open_made(file).signed_by == KEY.public
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_signing_what_is_no_sound_bundle_leaves_it_alone(file):
    rewrite(file, {**entries(file), "parts/tables": b"broken"})
    before = file.read_bytes()
    with pytest.raises(PartHashError):
        sign_bundle(file, KEY)
    assert file.read_bytes() == before


def test_writing_checks_that_manifest_and_parts_go_together(tmp_path):
    made = make()
    with pytest.raises(BundleError, match="other parts"):
        Made(made.manifest, {**made.contents, "more": b""}).write(tmp_path / "m.ncb")
    assert not (tmp_path / "m.ncb").exists()


def test_a_failed_write_leaves_the_old_bundle(file, monkeypatch):
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        make(release=2).write(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir() if path.name.endswith(".partial")] == []


def test_the_manifest_reads_back(file):
    raw = entries(file)["manifest.json"]
    assert msgspec.json.decode(raw)["schema"] == 1
    assert raw == to_json(make().manifest, indent=2)
    assert io.BytesIO(raw).read(1) == b"{"


def test_public_keys_alone_cannot_sign():
    assert not hasattr(PublicKey(KEY.public.raw), "sign")
    assert b"not a secret" not in repr(KEY).encode()
