"""The folder of bundles."""

from __future__ import annotations

import numpy as np
import pytest
from support import bundles

from narrowcast.tail.errors import ListenError, StoreError, TailBackendError
from narrowcast.tail.server import TailServer
from narrowcast.tail.store import load_codecs, load_model, load_models
from narrowcast.transport.bundle import OutputSpec, describe_part
from narrowcast.transport.errors import UnsignedBundleError, UntrustedKeyError
from narrowcast.transport.rpc.channels import Address

TRUSTED = [bundles.trusted_key()]


def test_the_highest_release_of_each_model_is_served(tmp_path):
    for name, release in (("a", 1), ("a", 3), ("a", 2), ("b", 7)):
        bundles.make(name, release).write(tmp_path / f"{name}{release}.ncb")
    models = load_models(tmp_path, trusted=TRUSTED)
    assert {name: model.manifest.release for name, model in models.items()} == {"a": 3, "b": 7}


def test_a_bundle_that_must_not_be_used_is_left_out_with_the_reason(tmp_path, caplog):
    bundles.make("good").write(tmp_path / "good.ncb")
    bundles.make("unsigned").write(tmp_path / "unsigned.ncb", key=None)
    (tmp_path / "broken.ncb").write_bytes(b"broken")
    assert list(load_models(tmp_path, trusted=TRUSTED)) == ["good"]
    assert "unsigned.ncb is not signed" in caplog.text
    assert "broken.ncb is no bundle" in caplog.text
    assert sorted(load_models(tmp_path, trusted=TRUSTED, allow_unsigned=True)) == ["good", "unsigned"]


def test_nothing_to_serve(tmp_path):
    with pytest.raises(StoreError, match="no folder"):
        load_models(tmp_path / "none")
    with pytest.raises(StoreError, match="no bundles"):
        load_models(tmp_path)
    bundles.make().write(tmp_path / "a.ncb")
    with pytest.raises(UntrustedKeyError):
        load_models(tmp_path, trusted=[])
    bundles.make().write(tmp_path / "a.ncb", key=None)
    with pytest.raises(UnsignedBundleError):
        load_models(tmp_path, trusted=TRUSTED)


def test_two_of_one_name_and_release(tmp_path):
    for file in ("a.ncb", "b.ncb"):
        bundles.make("twin").write(tmp_path / file)
    with pytest.raises(StoreError, match="both 'twin' release 1; remove one"):
        load_models(tmp_path, trusted=TRUSTED)


def test_codecs_side_by_side_as_a_folder_that_is_watched_has_them(tmp_path, caplog):
    for release in (1, 2):
        bundles.make("a", release).write(tmp_path / f"a{release}.ncb")
    bundles.with_codec(bundles.make("a", 3), 1).write(tmp_path / "a3.ncb")
    for file in ("b.ncb", "c.ncb"):
        bundles.make("twin").write(tmp_path / file)
    models = load_codecs(tmp_path, trusted=TRUSTED)
    assert sorted(model.manifest.release for model in models) == [2, 3]
    assert "both 'twin' release 1; remove one" in caplog.text
    (model,) = load_codecs(tmp_path, trusted=TRUSTED, keep=1)
    assert model.manifest.release == 3


def test_a_tail_that_does_not_run_is_found_when_it_is_loaded(tmp_path):
    model = bundles.head_model()
    part = describe_part("tail.onnx", model, "tail", ["server"], precision="fp32")
    file = bundles.make().with_part(part, model).write(tmp_path / "m.ncb")
    with pytest.raises(TailBackendError, match="the tail failed"):
        load_model(bundles.open_made(file))
    with pytest.raises(StoreError, match="can be served"):
        load_models(tmp_path, trusted=TRUSTED)


def test_a_tail_with_other_outputs_than_promised(tmp_path):
    import msgspec

    made = bundles.make()
    outputs = [OutputSpec(name="boxes", dtype="float32", shape=[4])]
    made.manifest = msgspec.structs.replace(made.manifest, outputs=outputs)
    with pytest.raises(TailBackendError, match=r"promises \['boxes'\]"):
        load_model(bundles.open_made(made.write(tmp_path / "m.ncb")))


def test_images_are_answered_where_the_bundle_carries_the_whole_network(tmp_path):
    plain = load_model(bundles.open_made(bundles.make().write(tmp_path / "plain.ncb")))
    assert (plain.whole, plain.image_tails) == (None, [])
    frames = bundles.random_frames(3)
    with pytest.raises(TailBackendError, match="no whole network for the tail 'main'"):
        plain.answer_images(frames, [frozenset(["main"])] * 3)
    made = bundles.with_whole(bundles.with_second_tail(bundles.make()))
    model = load_model(bundles.open_made(made.write(tmp_path / "whole.ncb")))
    assert model.image_tails == ["main"]
    wanted = [frozenset(["main"]), frozenset(), frozenset(["main"])]
    answers = model.answer_images(frames, wanted)
    assert [answer.keys() for answer in answers] == [{"output"}, set(), {"output"}]
    for k in (0, 2):
        assert np.allclose(answers[k]["output"], bundles.expected_output(frames[k], 1), atol=1e-4)


def test_a_whole_network_that_does_not_run_is_found_when_it_is_loaded(tmp_path):
    made, model = bundles.make(), bundles.head_model()
    part = describe_part("whole.onnx", model, "whole", ["device", "server"], optional=True)
    with pytest.raises(TailBackendError, match="the whole network failed"):
        load_model(bundles.open_made(made.with_part(part, model).write(tmp_path / "m.ncb")))


def test_beyond_this_machine_only_where_it_was_asked_for():
    with pytest.raises(ListenError, match="--insecure"):
        TailServer({}, Address("0.0.0.0", 1))
    TailServer({}, Address("0.0.0.0", 1), insecure=True)
