"""The recipe: one TOML file that says what to compile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from narrowcast.compiler.bottlenecks import PRESETS, BottleneckSettings
from narrowcast.compiler.bottlenecks.base import TablesKind
from narrowcast.compiler.deployment import DeploySettings
from narrowcast.compiler.planner.link import PlanSettings
from narrowcast.devices.errors import TargetError
from narrowcast.devices.targets import load_target
from narrowcast.transport.bundle.manifest import MAX_MANIFEST_BYTES, MAX_TAILS, Precision, TailName
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import Settings, from_mapping, nearest, parse_toml
from narrowcast.transport.tasks import MAIN, Task

DEFAULT_PRESET = "shallow-residual"
# What a recipe may take of a bundle's manifest, which holds it and its tasks; the rest is for parts, figures and plan.
MAX_RECIPE_BYTES = MAX_MANIFEST_BYTES // 8 * 7


class TeacherSettings(Settings, frozen=True):
    """``[teacher]``: the trained network (see :mod:`narrowcast.compiler.teacher`).

    Attributes:
        model: ``timm:NAME``, ``torchvision:NAME``, ``package.module:function``, ``file.py:function`` or ``FILE.pt2``.
        weights: a ``.safetensors``, ``.pt`` or ``.pth`` file; none where the model brings its own.
        options: keyword arguments for the model's constructor.
        part: the module of it that is compiled (``backbone``), where the rest cannot be traced, or runs elsewhere.
    """

    model: str
    weights: str | None = None
    options: dict[str, Any] = {}
    part: str | None = None


class DataSettings(Settings, frozen=True):
    """``[data]``: images to learn from; labels are not needed.

    Attributes:
        train: a folder of images, searched with its sub-folders; or tar shards in webdataset's layout:
            ``photos-{000..012}.tar``, ``photos-*.tar``, or a folder of them.
        holdout: the part of the images that is kept from training; the bundle's figures are measured on 256 of them at
            most, drawn by the seed.
        limit: use at most so many images (chosen by the seed).
        video: a folder of video files, or of folders of images that are a video's frames: what video tables are fitted to
            (``[coding] video``). Where it is missing, images are seen by a synthetic camera.
    """

    train: str
    holdout: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.05
    limit: Annotated[int, msgspec.Meta(ge=2)] | None = None
    video: str | None = None


class CutSettings(Settings, frozen=True):
    """``[cut]``: where. ``narrowcast cuts MODEL`` lists the names; ``auto`` lets the planner choose, by ``[plan]``."""

    at: str


class TrainSettings(Settings, frozen=True):
    """``[train]``: how long and how fast; presets without learning ignore it.

    Attributes:
        images: how many images are shown in all.
        batch: images per step; ``bottlefit`` and ``entropic-student`` take 64 where a recipe says nothing.
        learning_rate: at the start.
        seed: of everything random.
        flips: show images mirrored left to right in every other pass over them, with what the teacher says of them then.
        device: ``auto`` takes a GPU where there is one.
        devices: how many devices of that kind share each step's images, one process for each; on CPUs, processes.
        precision: ``bf16`` computes convolutions and matrix products in bfloat16 while training, where that is faster (GPUs
            since 2020, CPUs with AMX or AVX512-BF16); weights stay float32, and so does the bundle. ``auto`` is bf16 on
            GPUs that have it, fp32 elsewhere.
        cache_gigabytes: prepared images are kept on disk where they fit in this, else decoded whenever they are needed; so
            are the teacher's features at the cut, and its answers where a stage sees an image often, else computed.
        tensorboard: write every step's figures for TensorBoard, in ``tensorboard/`` in the run's folder.
    """

    images: Annotated[int, msgspec.Meta(ge=1)] = 40_000
    batch: Annotated[int, msgspec.Meta(ge=1)] = 32
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    flips: bool = False
    device: str = "auto"
    devices: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    cache_gigabytes: Annotated[float, msgspec.Meta(ge=0)] = 8.0
    tensorboard: bool = False


class CodingSettings(Settings, frozen=True):
    """``[coding]``: how learned symbols become bytes; presets that are coded with zstandard ignore it.

    Attributes:
        tables: ``context`` chooses every symbol's table by its neighbours: fewer bytes, about 10 ns a symbol more;
            ``channel`` has one table per channel and level; ``none`` gives every symbol the same number of bits: all packets
            of a level have one size. ``codebook`` takes ``none`` where a recipe says nothing, and has no contexts.
        images: how many training images the tables are fitted to.
        video: also fit tables for frames that resemble the one before (``docs/video.md``): a camera's frames then take fewer
            bytes, and those that show nothing new hardly any. Takes a minute or two. Not for ``codebook``.
    """

    tables: TablesKind = "context"
    images: Annotated[int, msgspec.Meta(ge=1)] = 256
    video: bool = False


class ExportSettings(Settings, frozen=True):
    """``[export]``.

    Attributes:
        targets: kinds of board that the bundle is meant for (``narrowcast probe --targets`` lists them).
        whole: put the uncut network in as well, for the local and the send-the-image baselines.
        precisions: of the head (``fp32``, ``fp16``, ``int8``); a board runs the one that it measures to be the fastest.
            Each further one takes about a minute to make and to measure. ``fp32`` is always there: it is what the others
            are compared with (``docs/precision.md``).
        calibration_images: how many training images the ranges of an INT8 head are measured on.
        max_agreement_loss: a precision that agrees with the teacher on so much less of the held-out images than fp32 does
            (the mean over the levels) is left out of the bundle.
        max_error_growth: the same for networks that give no class scores: by how much the output error may grow, as a
            part of fp32's.
    """

    targets: list[str] = []
    whole: bool = True
    precisions: list[Precision] = msgspec.field(default_factory=lambda: ["fp32"])
    calibration_images: Annotated[int, msgspec.Meta(ge=1)] = 128
    max_agreement_loss: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    max_error_growth: Annotated[float, msgspec.Meta(ge=0)] = 0.1

    def __post_init__(self) -> None:
        if "fp32" not in self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise ValueError(f"precisions is {self.precisions}; fp32, and what else is wanted, each once")


class ExitSettings(Settings, frozen=True):
    """``[exit]``: a small classifier on the symbols, for a device without a link; without the table there is none.

    Attributes:
        width: channels of its first layers; doubled whenever the map is halved.
        images: how many training images are coded for it, each at a level drawn at random.
        passes: how often it sees them.
    """

    width: Annotated[int, msgspec.Meta(ge=8, le=1024)] = 32
    images: Annotated[int, msgspec.Meta(ge=1)] = 12_000
    passes: Annotated[int, msgspec.Meta(ge=1)] = 20


class TailSettings(Settings, frozen=True):
    """``[[tails]]``: a further network on the same symbols, with a decoder of its own (``docs/tasks.md``).

    Attributes:
        name: what clients call it; ``main`` is the first one's.
        model, weights, options, part: its teacher, as in ``[teacher]``.
        at: where this network is cut; where it is missing, as ``[cut]`` says.
        task: what its outputs are.
        images: how many images its decoder is shown; half of ``[train] images`` where it is missing.
        decoder_width: channels of the decoder, which runs on the server.
        tune_tail: give the last fifth of the images to the decoder and a copy of the layers behind the cut.
    """

    name: TailName
    model: str
    weights: str | None = None
    options: dict[str, Any] = {}
    part: str | None = None
    at: str | None = None
    task: Task | None = None
    images: Annotated[int, msgspec.Meta(ge=1)] | None = None
    decoder_width: Annotated[int, msgspec.Meta(ge=8, le=1024)] = 96
    tune_tail: bool = False


class Recipe(Settings, frozen=True):
    """A recipe file.

    Attributes:
        name: the model's name on servers; the recipe file's name where it is missing.
        release: grows with every version that goes out; boards refuse to go back.
        folder: what its file names are relative to (not a key: set by :func:`load_recipe`).
    """

    teacher: TeacherSettings
    data: DataSettings
    cut: CutSettings
    input: InputContract
    bottleneck: BottleneckSettings
    name: str = ""
    release: Annotated[int, msgspec.Meta(ge=1)] = 1
    train: TrainSettings = TrainSettings()
    coding: CodingSettings = CodingSettings()
    export: ExportSettings = ExportSettings()
    exit: ExitSettings | None = None
    task: Task | None = None
    tails: Annotated[list[TailSettings], msgspec.Meta(max_length=MAX_TAILS)] = []
    plan: PlanSettings = PlanSettings()
    folder: str = ""

    def __post_init__(self) -> None:
        names = [MAIN, *(tail.name for tail in self.tails)]
        if len(set(names)) < len(names):
            raise ValueError(
                f"[[tails]] are called {', '.join(names[1:])}; each has a name of its own, none is {MAIN!r}"
            )
        if self.input.free is not None and (self.tails or self.exit is not None):
            raise ValueError(
                f"[input] fit is 'free'; {'[[tails]]' if self.tails else '[exit]'} is for images of one size only"
            )
        # Said here, since the bundle is written after the training.
        told = {"recipe": self, "task": self.task, "tails": [{"task": tail.task} for tail in self.tails]}
        size_bytes = len(msgspec.json.format(msgspec.json.encode(told), indent=2))
        if size_bytes > MAX_RECIPE_BYTES:
            raise ValueError(
                f"a bundle's manifest has {MAX_RECIPE_BYTES} bytes for a recipe and its tasks, which take {size_bytes} "
                "here: shorten the names under 'classes', or leave out a classifier's"
            )


def load_recipe(path: Path, **tables: dict[str, Any]) -> Recipe:
    """Reads a recipe.

    Args:
        path: the file.
        tables: keys that go before the file's, by table.

    Raises:
        ConfigError: no such file, not TOML, an unknown key or preset, or a value of the wrong type.
    """
    return recipe_from(read_mapping(path, **tables), path.name, path.stem, path.parent)


def read_mapping(path: Path, **tables: dict[str, Any]) -> dict[str, Any]:
    """What a recipe file says, unchecked; ``tables`` as for :func:`load_recipe`.

    Raises:
        ConfigError: no such file, or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no recipe {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    mapping = parse_toml(text, path.name)
    for name, keys in tables.items():
        table = mapping.setdefault(name, {})
        if isinstance(table, dict):  # else it is refused with all the others
            table.update(keys)
    return mapping


def load_deployment(path: Path) -> DeploySettings:
    """A recipe's ``[deploy]``; its defaults where there is none.

    Raises:
        ConfigError: see :func:`load_recipe`.
    """
    return _deployment(read_mapping(path).get("deploy", {}), path.name)


def _deployment(table: Any, source: str) -> DeploySettings:
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: deploy is a table, [deploy]")
    return from_mapping(DeploySettings, table, f"{source}: [deploy]")


def recipe_from(mapping: dict[str, Any], source: str, name: str, folder: Path) -> Recipe:
    """A recipe from what a TOML parser gives; ``source`` names it in errors.

    Raises:
        ConfigError: see :func:`load_recipe`.
    """
    if "folder" in mapping:
        raise ConfigError(f"{source}: unknown key 'folder'")
    bottleneck = mapping.get("bottleneck", {})
    if not isinstance(bottleneck, dict):
        raise ConfigError(f"{source}: bottleneck is a table, [bottleneck]")
    preset = bottleneck.get("preset", DEFAULT_PRESET)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"{source}: unknown preset {preset!r}{nearest(str(preset), sorted(PRESETS))}")
    _deployment(mapping.get("deploy", {}), source)  # a slip there is not found hours later
    mapping = {name: table for name, table in mapping.items() if name != "deploy"}
    filled = {**mapping, "name": mapping.get("name") or re.sub(r"[^A-Za-z0-9._-]", "-", name), "folder": str(folder)}
    filled["bottleneck"] = {**bottleneck, "preset": preset}
    train = mapping.get("train", {})
    if isinstance(train, dict):
        filled["train"] = {**PRESETS[preset].train_defaults, **train}
    coding = mapping.get("coding", {})
    if isinstance(coding, dict):
        filled["coding"] = {"tables": PRESETS[preset].tables[0], **coding}
    recipe = from_mapping(Recipe, filled, source)
    if recipe.coding.tables not in PRESETS[preset].tables:
        raise ConfigError(
            f"{source}: [coding] tables is {recipe.coding.tables!r}; {preset} takes {' or '.join(PRESETS[preset].tables)}"
        )
    if recipe.coding.video and "context" not in PRESETS[preset].tables:
        raise ConfigError(
            f"{source}: [coding] video: {preset}'s symbols have no order by which they could be predicted"
        )
    if recipe.data.video is not None and not recipe.coding.video:
        raise ConfigError(f"{source}: [data] video is for video tables: set video = true under [coding], too")
    for target in recipe.export.targets:
        try:
            backends = load_target(target).backends
        except TargetError as error:
            raise ConfigError(f"{source}: [export] targets: {error}") from error
        if recipe.input.free is not None and "onnxruntime" not in backends:
            raise ConfigError(f"{source}: [export] targets: {target} has no onnxruntime, which fit = 'free' wants")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", recipe.name):
        raise ConfigError(f"{source}: name is {recipe.name!r}; letters, digits, '.', '_' and '-', 64 at most")
    return recipe
