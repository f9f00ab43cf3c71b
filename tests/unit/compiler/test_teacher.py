"""Loading the teacher."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import networks

from narrowcast.compiler.errors import TeacherError, WeightsError
from narrowcast.compiler.teacher import load_teacher
from narrowcast.transport.errors import MissingDependencyError

FILE = Path(networks.__file__)


def test_from_a_file_with_options():
    network = load_teacher("networks.py:tiny", options={"classes": 7}, folder=FILE.parent)
    assert network.classifier.out_features == 7
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_from_a_module():
    assert isinstance(load_teacher("support.networks:tiny"), networks.TinyNet)


def test_from_timm(timm):
    assert load_teacher("timm:resnet18", options={"num_classes": 3}).fc.out_features == 3


def test_from_a_program(tmp_path):
    program = torch.export.export(networks.tiny().eval(), (torch.zeros(1, 3, 32, 32),))
    torch.export.save(program, tmp_path / "net.pt2")
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(load_teacher("net.pt2", folder=tmp_path)(image), networks.tiny().eval()(image))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights(tmp_path, suffix):
    state = {name: torch.full_like(value, 0.5) for name, value in networks.tiny().state_dict().items()}
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network = load_teacher("support.networks:tiny", weights=str(path))
    assert all((value == 0.5).all() for value in network.state_dict().values())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("resnet50", "names no model"),
        ("timm:", "names no model"),
        (":x", "names no model"),
        ("nowhere.py:load", "no file"),
        ("networks.py:nothing", "has no function 'nothing'"),
        ("networks.py:not_a_module", "gives a int, not a torch.nn.Module"),
        ("networks.py:failing", "RuntimeError: no such file: secret.bin"),
        ("no.such.module:f", "importing no.such.module failed"),
        ("nowhere.pt2", "no file"),
        ("networks.py:tiny(", "has no function"),
    ],
)
def test_models_that_cannot_be_loaded(model, said):
    with pytest.raises(TeacherError, match=said.replace("(", r"\(")):
        load_teacher(model, folder=FILE.parent)


def test_wrong_options():
    with pytest.raises(TeacherError, match="unexpected keyword argument 'colour'"):
        load_teacher("support.networks:tiny", options={"colour": 1})
    with pytest.raises(TeacherError, match="takes no options"):
        load_teacher("net.pt2", options={"a": 1})


def test_a_file_that_fails_on_import(tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_like_this")
    with pytest.raises(TeacherError, match="failed on import: ModuleNotFoundError"):
        load_teacher("bad.py:f", folder=tmp_path)


def test_a_file_is_like_any_python_file(tmp_path):
    """It may have dataclasses under postponed annotations, and import its neighbours."""
    (tmp_path / "parts_of_it.py").write_text("from torch import nn\n\ndef block():\n    return nn.ReLU()\n")
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom parts_of_it import block\n\n"
        "@dataclass\nclass Size:\n    width: int = 3\n\ndef load():\n    return block()\n"
    )
    before = list(sys.path)
    assert isinstance(load_teacher("net.py:load", folder=tmp_path), torch.nn.ReLU)
    assert sys.path == before


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ([1, 2], "a list that is no state_dict"),
        ({"epoch": 3, "state_dict": {}}, "its 'state_dict' may be one"),
        ({"epoch": 3}, "a dict that is no state_dict"),
    ],
)
def test_weights_that_are_no_state(tmp_path, saved, said):
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=said):
        load_teacher("support.networks:tiny", weights=str(tmp_path / "w.pt"))


def test_a_program_that_is_none(tmp_path):
    (tmp_path / "x.pt2").write_bytes(b"not a program")
    with pytest.raises(TeacherError, match="no program saved by torch.export"):
        load_teacher("x.pt2", folder=tmp_path)


def test_a_missing_zoo_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="timm:resnet18 needs timm"):
        load_teacher("timm:resnet18")


def test_no_such_architecture(timm):
    with pytest.raises(TeacherError, match="timm has no model 'resnet19'"):
        load_teacher("timm:resnet19")


def bent(change):
    state = networks.tiny().state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (bent(lambda s: s.pop("stem.0.weight")), r"1 missing \(stem.0.weight\)"),
        (bent(lambda s: s.update(extra=torch.zeros(1))), r"1 surplus \(extra\)"),
        (
            bent(lambda s: s.update({"classifier.bias": torch.zeros(9)})),
            r"shape \(classifier.bias \[9\] instead of \[4\]\)",
        ),
        ({f"a{k}": torch.zeros(1) for k in range(9)}, r"9 surplus \(a0, a1, a2, \.\.\.\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, state, said):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=said):
        load_teacher("support.networks:tiny", weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_weights_that_are_none(tmp_path, name):
    for content in (b"nonsense", b""):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name} cannot be read as weights: \w"):
            load_teacher("support.networks:tiny", weights=str(tmp_path / name))
    with pytest.raises(WeightsError, match="no weights file"):
        load_teacher("support.networks:tiny", weights="none.pt")


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Evil()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError):
        load_teacher("support.networks:tiny", weights=str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()
