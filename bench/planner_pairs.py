"""The (network, cut) pairs of ``bench/planner.py``: compiled for real, once, and what came out kept beside their bundles."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.cuts import cuts
from narrowcast.compiler.progress import Progress
from narrowcast.compiler.recipe import Recipe, recipe_from

DEMO_FRAMES = 4_000
NECK_MACS = 25_000_000
DEMO_NECK_MACS = 8_000_000


@dataclass(frozen=True)
class Network:
    """A trained network with photos: what all of its pairs share.

    Attributes:
        name: in the table.
        teacher: a recipe's ``[teacher]``.
        data: a recipe's ``[data]``.
        input: a recipe's ``[input]``.
        cuts: where it is cut.
        bottleneck: a recipe's ``[bottleneck]``, but for ``encoder_macs``.
        train: a recipe's ``[train]``.
        neck_macs: what the encoder may take beyond the network's own layers.
    """

    name: str
    teacher: dict[str, Any]
    data: dict[str, Any]
    input: dict[str, Any]
    cuts: tuple[str, ...]
    bottleneck: dict[str, Any]
    train: dict[str, Any]
    neck_macs: int

    def recipes(self) -> list[Recipe]:
        """One recipe per cut; the teacher's own layers are the trunk, so every head is another."""
        options = {"weights": self.teacher.get("weights"), "size": tuple(self.input["size"])}
        found_cuts = cuts(self.teacher["model"], **options).cuts
        table = {name: cut for cut in found_cuts for name in (cut.name, *cut.aliases)}
        found = []
        for at in self.cuts:
            budget = table[at].macs_before + self.neck_macs
            sections = {
                "teacher": self.teacher, "data": self.data, "input": self.input, "cut": {"at": at},
                "train": self.train, "export": {"whole": True},
                "bottleneck": {**self.bottleneck, "trunk": "teacher", "encoder_macs": budget},
            }  # fmt: skip
            name = f"{self.name}-{at}"
            found.append(recipe_from(sections, name, name, Path()))
        return found


@dataclass(frozen=True)
class Real:
    """What a compilation gave.

    Attributes:
        network: its name.
        cut: its name.
        levels: of the bundle's figures, on held-out images: ``mean_packet_bytes`` and ``agreement`` each.
        bundle: the file.
    """

    network: str
    cut: str
    levels: list[dict[str, Any]]
    bundle: str


def mobilenet(teacher: Path, photos: Path) -> Network:
    """MobileNetV2, trained on ImageNet, on photographs; at 128 px, a third of the work of 224 px."""
    return Network(
        "mobilenet_v2",
        {"model": f"{teacher}:load"},
        {"train": str(photos), "limit": 1000, "holdout": 0.2},
        {"size": [128, 128], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        ("features.3", "features.6", "features.10", "features.13", "features.16"),
        {"preset": "shallow-residual", "levels": 4, "rate_weights": [0.003, 3.0], "channels": 160},
        {"images": 1600, "batch": 16, "learning_rate": 2e-3},
        NECK_MACS,
    )


def demo(folder: Path) -> Network:
    """The demo's network, trained here, on its rendered frames."""
    from safetensors.torch import save_file

    from narrowcast.demo import teacher
    from narrowcast.demo.render import Renderer, save

    weights = folder / "demo.safetensors"
    if not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rendered = Renderer(test=False).render(DEMO_FRAMES, seed=0)
        save(rendered, folder / "frames")
        net = teacher.train(*rendered, epochs=(6, 1), seed=0, advance=lambda done, figures: None)
        save_file(net.state_dict(), weights)
    return Network(
        "digits",
        {"model": f"{Path(teacher.__file__)}:load", "weights": str(weights.resolve())},
        {"train": str((folder / "frames").resolve()), "holdout": 0.07},
        {"size": [96, 96]},
        ("stem", "stages.0", "stages.1", "stages.2"),
        {
            "preset": "shallow-residual", "levels": 4, "rate_weights": [0.1, 6.0], "channels": 24, "decoder_width": 48,
        },
        {"images": 4000, "batch": 32, "learning_rate": 2e-3},
        DEMO_NECK_MACS,
    )  # fmt: skip


def compile_pair(recipe: Recipe, network: str, folder: Path, progress: Progress) -> Real:
    """Compiles a recipe, or takes what an earlier run of the bench has left."""
    bundle, figures = folder / f"{recipe.name}.ncb", folder / f"{recipe.name}.json"
    if not figures.exists():
        compiled = compile_recipe(recipe, bundle, work=folder / "work", progress=progress)
        real = Real(network, recipe.cut.at, compiled.manifest.figures["levels"], bundle.name)
        figures.write_text(json.dumps(asdict(real)))
    return Real(**json.loads(figures.read_text()))
