"""`narrowcast evaluate`: a really compiled bundle on folders of images."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from support import bundles

from narrowcast.cli import main
from narrowcast.cli.show import TerminalProgress
from narrowcast.compiler import evaluate as module
from narrowcast.compiler.codecs import ImageCodec, codecs_named
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.evaluate import evaluate, evaluate_frames
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.errors import BundleError
from narrowcast.transport.frames import read_image
from narrowcast.transport.packet import STREAM_HEADER_BYTES

FEW = [codec._replace(qualities=codec.qualities[1::3], scales=(1.0, 0.5)) for codec in codecs_named("jpeg,webp,avif")]


@pytest.fixture(scope="module")
def bundle(compiled):
    return Bundle.open(compiled[0].bundle, trusted=[bundles.KEY.public])


@pytest.fixture(scope="module")
def frames(bundle, photo_folder):
    files = sorted(photo_folder.rglob("*.png"))[:20]
    return np.stack([bundle.manifest.input.prepare(read_image(path)).image for path in files])


@pytest.fixture(scope="module")
def found(bundle, photo_folder):
    """On 20 images in class folders, few settings of each codec, and PNG."""
    return evaluate(bundle, photo_folder, limit=20, codecs=[*codecs_named("png"), *FEW])


def test_class_folders_are_labels(found):
    assert (found.images, found.labelled, found.by) == (20, True, "accuracy")
    for score in found.scores:
        assert 0 <= score.accuracy <= 1
        assert (score.mean_bytes is None) == (score.way == "teacher")
        low, high = score.accuracy_interval
        assert low <= score.accuracy <= high
    png = found.of("png")[0]
    assert (png.agreement, png.output_error, png.accuracy_gain) == (1.0, 0.0, 0.0)


def test_every_codec_at_every_quality_and_size(found):
    for codec in FEW:
        if codec.available:
            scores = found.of(codec.name)
            assert [(s.scale, s.setting) for s in scores] == [(s, q) for s in codec.scales for q in codec.qualities]
            for scale in codec.scales:
                sizes = [score.mean_bytes for score in scores if score.scale == scale]
                assert sizes == sorted(sizes)
        else:
            assert codec.name in found.absent


def test_bytes_are_those_of_the_packets(bundle, frames):
    result = evaluate_frames(bundle, frames, None, codecs=())
    session = HeadSession(bundle)
    for score, outcome in zip(result.of("split"), result.outcomes[1:], strict=True):
        sizes = [len(session.encode(frame, score.setting).payload) + STREAM_HEADER_BYTES for frame in frames]
        assert outcome.sizes.tolist() == sizes
        assert score.mean_bytes == np.mean(sizes)


def test_a_codec_is_the_teacher_on_what_arrives(bundle, frames):
    from narrowcast.compiler.verify import OnnxNetwork

    jpeg = FEW[0]
    result = evaluate_frames(bundle, frames, None, codecs=[jpeg])
    whole = OnnxNetwork(bundle.read("whole"), 1)
    wanted = whole(image=frames)["output"].argmax(1)
    row = next(
        k for k, s in enumerate(result.scores) if (s.way, s.setting, s.scale) == ("jpeg", jpeg.qualities[0], 0.5)
    )
    arrived, sizes = zip(*(jpeg.transcode(frame, jpeg.qualities[0], 0.5) for frame in frames), strict=True)
    assert result.outcomes[row].sizes.tolist() == list(sizes)
    assert (
        result.outcomes[row].agreed.tolist() == (whole(image=np.stack(arrived))["output"].argmax(1) == wanted).tolist()
    )


def test_nothing_depends_on_how_many_work_on_it(bundle, frames, monkeypatch):
    results = []
    for cores, chunk in ((1, 20), (3, 7)):
        monkeypatch.setattr(module.os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        monkeypatch.setattr(module, "CHUNK", chunk)
        results.append(evaluate_frames(bundle, frames, np.arange(20) % 4, codecs=FEW[:1]))
    first, second = results
    assert [(s.mean_bytes, s.accuracy, s.agreement, s.accuracy_interval) for s in first.scores] == [
        (s.mean_bytes, s.accuracy, s.agreement, s.accuracy_interval) for s in second.scores
    ]
    assert first.comparisons == second.comparisons


def test_a_codec_that_the_machine_lacks_is_named_and_left_out(bundle, frames):
    lacking = FEW[0]._replace(name="jpeg9", feature="no such library")
    result = evaluate_frames(bundle, frames[:2], None, codecs=[lacking])
    assert result.absent == ["jpeg9"]
    assert {score.way for score in result.scores} == {"teacher", "split"}


def test_a_precision_that_the_bundle_lacks_is_an_error(bundle, frames):
    with pytest.raises(BundleError, match="int8"):
        evaluate_frames(bundle, frames[:2], None, codecs=(), precision="int8")


class TestCodecsOfAnEarlierRun:
    """A second bundle of the same teacher need not wait for the codecs again."""

    @pytest.fixture
    def evaluated(self, bundle, photo_folder, tmp_path, monkeypatch):
        """A function that evaluates on a few images: (the evaluation, how many images it sent through a codec)."""
        transcode = ImageCodec.transcode

        def run(**options):
            sent = []
            monkeypatch.setattr(ImageCodec, "transcode", lambda *args: sent.append(args) or transcode(*args))
            options = {"data": photo_folder, "limit": 5, "codecs": FEW[:1], "work": tmp_path / "work", **options}
            return evaluate(bundle, **options), len(sent)

        return run

    def test_are_the_same_and_are_not_sent_again(self, evaluated):
        settings = len(FEW[0].qualities) * len(FEW[0].scales)
        (first, sent), (second, again) = evaluated(), evaluated()
        assert (sent, again) == (5 * settings, 0)
        assert second == first

    def test_are_measured_anew_when_something_changes(self, evaluated, photo_folder, tmp_path):
        settings = len(FEW[0].qualities) * len(FEW[0].scales)
        evaluated()
        assert evaluated(limit=4)[1] == 4 * settings
        assert evaluated(data=photo_folder / "1")[1] == 5 * settings
        other = FEW[0]._replace(options=lambda quality: {"quality": quality, "optimize": False})
        assert evaluated(codecs=[other])[1] == 5 * settings
        finer = FEW[0]._replace(qualities=(*FEW[0].qualities, 93))
        assert evaluated(codecs=[finer])[1] == 5 * len(FEW[0].scales)  # the new quality alone
        table = tmp_path / "truth.csv"
        names = [str(path.relative_to(photo_folder)) for path in sorted(photo_folder.rglob("*.png"))[:5]]
        for label in (1, 2):
            table.write_text("file,label\n" + "".join(f"{name},{label}\n" for name in names))
            assert evaluated(labels=table)[1] == 5 * settings
        assert evaluated(work=None)[1] == 5 * settings

    def test_a_damaged_file_is_as_none(self, evaluated, tmp_path):
        first, sent = evaluated()
        for path in (tmp_path / "work").rglob("*.npz"):
            path.write_bytes(path.read_bytes()[:40])
        assert evaluated() == (first, sent)

    def test_a_folder_that_cannot_be_written_costs_the_cache_alone(self, evaluated, tmp_path, capsys):
        (tmp_path / "file").write_text("not a folder")
        found, _ = evaluated(work=tmp_path / "file", progress=TerminalProgress())
        assert found.images == 5
        assert "not kept for the next run" in capsys.readouterr().err

    def test_of_other_images_they_are_refused(self, evaluated, tmp_path):
        evaluated()
        for path in (tmp_path / "work").rglob("*.npz"):
            with np.load(path) as arrays:
                np.savez(path, **{**arrays, "images": np.array(4)})
        with pytest.raises(DataError, match="was written when other images could be read: delete it"):
            evaluated()


def test_a_table_of_labels(bundle, photo_folder, tmp_path):
    table = tmp_path / "truth.csv"
    names = [str(path.relative_to(photo_folder)) for path in sorted(photo_folder.rglob("*.png"))[:6]]
    table.write_text("file,label\n" + "".join(f"{name},{k % 4}\n" for k, name in enumerate(names)))
    assert evaluate(bundle, photo_folder, labels=table, codecs=()).images == 6
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())  # as spreadsheets save it
    assert evaluate(bundle, photo_folder, labels=table, codecs=()).images == 6
    for text, said in (
        ("file,label\n", "lists no images"),
        ("name,label\nx,1\n", "columns file and label"),
        ("file,label\nx.png,one\n", "columns file and label"),
        ("file,label\nx.png,4\n", "classes 0..3"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=said):
            evaluate(bundle, photo_folder, labels=table)
    table.write_text("file,label\nnowhere.png,1\n")
    with pytest.raises(DataError, match=r"no image .* can be read.*nowhere\.png"):
        evaluate(bundle, photo_folder, labels=table)
    with pytest.raises(DataError, match="no frames"):
        evaluate_frames(bundle, np.empty((0, 32, 32, 3), np.uint8), None)


def test_without_labels_there_is_agreement_alone(bundle, photo_folder):
    folder = photo_folder / "1"
    result = evaluate(bundle, folder, limit=4, codecs=(), by="agreement")
    assert not result.labelled
    assert result.by == "agreement"
    assert all(score.accuracy is None and score.agreement is not None for score in result.scores)
    with pytest.raises(DataError, match="accuracy wants labels, and these images have none"):
        evaluate(bundle, folder, by="accuracy")


def test_without_the_whole_network_there_are_bytes_and_accuracy(photo_folder, tmp_path):
    """The hand-made bundle has head and tail only; its three outputs are its classes."""
    tiny = bundles.open_made(bundles.make().write(tmp_path / "tiny.ncb"))
    table = tmp_path / "truth.csv"
    table.write_text("file,label\n" + "".join(f"{k % 4}/{k:02d}.png,{k % 3}\n" for k in range(6)))
    result = evaluate(tiny, photo_folder, labels=table)
    assert [score.way for score in result.scores] == ["split", "split"]
    assert all(s.accuracy is not None and s.agreement is None and s.accuracy_gain is None for s in result.scores)
    assert result.comparisons == []
    with pytest.raises(DataError, match="agreement wants the teacher, and tiny holds no whole network"):
        evaluate(tiny, photo_folder, labels=table, by="agreement")


class TestCommandLine:
    """In this process: another one would spend its time on imports."""

    @pytest.fixture
    def run(self, compiled, photo_folder, tmp_path, capsys):
        """A function that evaluates the bundle: (exit code, stdout, stderr)."""
        key = tmp_path / "test.pub"
        bundles.trusted_key().write(key)

        def run(*words, data=photo_folder):
            command = [
                "evaluate",
                compiled[0].bundle,
                "--data",
                data,
                "--trust",
                key,
                "--work",
                tmp_path / "work",
                *words,
            ]
            code = main([str(word) for word in command])
            return code, *capsys.readouterr()

        return run

    def test_the_table_the_csv_and_the_plot(self, run, tmp_path):
        table, plot = tmp_path / "s.csv", tmp_path / "s.svg"
        code, out, _ = run("--limit", "6", "--codecs", "jpeg,webp", "--csv", table, "--plot", plot)
        assert code == 0
        lines = out.splitlines()
        assert lines[0].startswith("test, release 1, on 6 images of")
        assert [line[:14] for line in lines if line.startswith("split")] == [f"split, level {k}" for k in range(3)]
        assert [line[:7] for line in lines if line.startswith("level")] == [f"level {k}" for k in range(3)]
        assert any(line.startswith("BD-rate") for line in lines)
        assert len(lines) < 25
        with table.open(newline="") as file:
            ways = [row["way"] for row in csv.DictReader(file)]
        assert ways[:5] == ["teacher", "split", "split", "split", "jpeg"]
        assert "<svg" in plot.read_text()

    def test_a_file_that_cannot_be_written_does_not_take_the_figures_along(self, run, tmp_path):
        (tmp_path / "none").touch()
        for words, there in (([], "test, release 1, on 3 images of"), (["--json"], '"images": 3')):
            code, out, err = run("--limit", "3", "--codecs", "none", "--csv", tmp_path / "none" / "s.csv", *words)
            assert code != 0
            assert there in out
            assert "File exists" in err

    def test_all_settings(self, run):
        _, out, _ = run("--limit", "3", "--codecs", "jpeg", "--all")
        assert "jpeg, quality 50, x 0.75" in out
        assert len([line for line in out.splitlines() if line.startswith("jpeg, quality")]) == 27

    def test_json(self, run):
        _, out, err = run("--limit", "3", "--codecs", "jpeg", "--json", "--quiet")
        assert err == ""
        data = json.loads(out)
        assert data["images"] == 3
        assert {c["against"] for c in data["comparisons"]} == {"jpeg", "best"}

    def test_images_without_a_label_are_counted_and_named(self, run, photo_folder, tmp_path):
        table = tmp_path / "truth.csv"
        names = sorted(photo_folder.rglob("*.png"))
        table.write_text(f"file,label\n{names[0].relative_to(photo_folder)},0\n")
        _, out, err = run("--labels", table, "--codecs", "none", "--json")
        assert f"{len(names) - 1} images of {photo_folder} have no label and are left out" in err
        assert err.count(".png") == 3
        data = json.loads(out)
        assert (data["images"], data["unlabelled"]) == (1, [str(path) for path in names[1:]])

    @pytest.mark.parametrize(
        ("words", "code", "said"),
        [
            (["--by", "accuracy"], 1, "accuracy wants labels"),
            (["--codecs", "webpp"], 2, "did you mean 'webp'"),
            (["--plot", "curve.jpg"], 2, "plots are .svg or .png files"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, run, photo_folder, words, code, said):
        found, out, err = run(*words, data=photo_folder / "1")
        assert (found, out) == (code, "")
        assert said in err
        assert len(err.strip().splitlines()) == 1
