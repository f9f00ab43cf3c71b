"""What the presets from papers share: two stages, the second of which tunes only what runs on the server.

The first stage distils into features with Adam, the second tunes decoder and tail by distillation with SGD; both papers
start at a learning rate of 1e-3 with 64 images a step, and give ten epochs to either. Here the recipe's ``[train] images``
are divided instead, so that a run is as long as its user wants it; learning rates fall at the same parts of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from torch import nn

from narrowcast.compiler.bottlenecks.base import Bottleneck, Optimizer, Problem, Stage
from narrowcast.compiler.bottlenecks.tail import Answers, LabelWeight, tuning_stage
from narrowcast.compiler.errors import BottleneckError
from narrowcast.transport.structs import Settings

# Below this the encoders' strides leave nothing to code.
LEAST_SIZE = 8
PAPERS_TRAINING: dict[str, Any] = {"batch": 64, "learning_rate": 1e-3}
Part = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class TwoStageSettings(Settings, frozen=True):
    """Keys of ``[bottleneck]`` that these presets have in common.

    Attributes:
        levels: rate points; these presets have one per model.
        first_stage: the part of ``[train] images`` that the first stage gets; the second gets the rest.
        first_decays: parts of the first stage after which its learning rate falls to a tenth.
        second_decays: the same for the second stage.
        second_speed: the second stage's learning rate, in ``[train] learning_rate``.
        momentum: of the second stage's SGD.
        weight_decay: of the second stage's SGD.
        temperature: of the distillation.
        label_weight: part of the second stage's loss that is cross-entropy with labels (class folders, or ``labels.csv``),
            the rest is distillation; the papers' 0.5 wants labels, 0 needs none.
        tune_tail: train a copy of the teacher's layers behind the cut too, not the decoder alone.
    """

    levels: int = 1
    first_stage: Part = 0.5
    first_decays: tuple[Part, ...] = (0.5,)
    second_decays: tuple[Part, ...] = (0.5,)
    second_speed: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 5e-4
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    label_weight: LabelWeight = 0.0
    tune_tail: bool = True

    def __post_init__(self) -> None:
        if self.levels != 1:
            raise ValueError(
                f"levels is {self.levels}; this preset has one rate per model: compile one for each, or use shallow-residual"
            )

    def check(self, problem: Problem) -> None:
        """Whether these presets can serve the problem.

        Raises:
            BottleneckError: the images are too small.
        """
        height, width = problem.contract.size
        if min(height, width) < LEAST_SIZE:
            raise BottleneckError(
                f"[input] size is {height} x {width}; {self.__struct_config__.tag} takes images of at least "
                f"{LEAST_SIZE} x {LEAST_SIZE}"
            )

    @property
    def first_optimizer(self) -> Optimizer:
        """Adam, on sums of squared errors: no gradient is ever short, so none is shortened."""
        return Optimizer("adam", decays=self.first_decays, max_gradient_norm=None)

    def second(self, bottleneck: Bottleneck, problem: Problem, decoder: Sequence[nn.Module]) -> Stage:
        """The second stage."""
        return tuning_stage(
            bottleneck,
            problem,
            decoder,
            Answers(self.temperature, self.label_weight),
            Optimizer("sgd", self.momentum, self.weight_decay, self.second_decays, None),
            share=1 - self.first_stage,
            speed=self.second_speed,
        )
