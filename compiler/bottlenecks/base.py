"""The seam at which bottlenecks plug in.

A preset says how a bottleneck is built for a cut, how it is trained, and how its symbols are coded. What it builds is a
module with two halves: ``encode`` (image to symbols, runs on the board) and ``decode`` (symbols to the features at the
cut, runs on the server). Everything around them (training loop, tables, export, verification, bundle) knows no preset.

To add a preset: a settings struct with its name as the tag, a :class:`Preset`, one line in ``__init__.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from narrowcast.compiler.bottlenecks.channels_last import runs_channels_last
from narrowcast.compiler.cuts import Cut
from narrowcast.compiler.cuts.split import prefix, suffix
from narrowcast.compiler.cuts.trace import Traced
from narrowcast.compiler.layout import Layout, layout_of
from narrowcast.compiler.normalize import Normalize
from narrowcast.transport.contract import InputContract
from narrowcast.transport.structs import Settings
from narrowcast.transport.tasks import Task

Symbols = npt.NDArray[np.uint8]
TablesKind = Literal["context", "channel", "none"]


class Problem:
    """What a bottleneck has to be built for: the teacher, the cut and the input.

    Attributes:
        traced: the teacher's graph.
        cut: where it is cut.
        contract: the input contract.
        layout: of the features at the cut.
        normalize: bytes to the teacher's input.
        before: the teacher up to the cut: ``[N, 3, H, W]`` to ``[N, *cut.shape]``.
        after: the teacher behind the cut: ``[N, *cut.shape]`` to its outputs.
        device: where to train.
        task: what the outputs are, every output named; None where nothing is said about them.
    """

    def __init__(
        self, traced: Traced, cut: Cut, contract: InputContract, device: torch.device, task: Task | None = None
    ) -> None:
        self.traced = traced
        self.cut = cut
        self.contract = contract
        self.device = device
        self.task = task
        self.layout: Layout = layout_of(cut.shape, contract.size)
        self.normalize = Normalize(contract, channels_last=runs_channels_last(traced.module, device)).to(device)
        self.before: fx.GraphModule = prefix(traced, cut.node).to(device)
        self.after: fx.GraphModule = suffix(traced, cut.node).to(device)


@dataclass
class Batch:
    """Images of one training step.

    Attributes:
        pictures: :attr:`images`, or what reads them: most steps need the features alone.
        features: float32 ``[N, *cut.shape]``, the teacher's own at the cut.
        generator: the step's source of randomness (on the CPU): a step draws the same whether or not a run was resumed.
        labels: int64 ``[N]``, classes of the teacher's; None where the recipe asks for none.
        targets: what the stage's :class:`Targets` make of ``features``; None where that is not kept.
    """

    pictures: Tensor | Callable[[], Tensor]
    features: Tensor
    generator: torch.Generator
    labels: Tensor | None = None
    targets: Any = None

    @cached_property
    def images(self) -> Tensor:
        """uint8 ``[N, H, W, 3]`` RGB, after the input contract; read when they are first asked for."""
        return self.pictures if isinstance(self.pictures, Tensor) else self.pictures()

    def uniform(self, like: Tensor) -> Tensor:
        """Noise in ``[-0.5, 0.5)`` of ``like``'s shape, on its device."""
        return (torch.rand(like.shape, generator=self.generator) - 0.5).to(like.device)

    def levels(self, count: int) -> Tensor:
        """int64 ``[N]``, each drawn from ``0 .. count - 1``."""
        drawn = torch.randint(count, (len(self.features),), generator=self.generator)
        return drawn.to(self.features.device)


@dataclass
class Loss:
    """``total`` is what is minimised; ``figures`` are shown and logged."""

    total: Tensor
    figures: dict[str, float] = field(default_factory=dict)


class Group(NamedTuple):
    """Parameters that are trained at one speed: ``speed`` times the recipe's learning rate."""

    parameters: Sequence[nn.Parameter]
    speed: float = 1.0


class Targets(NamedTuple):
    """Distillation targets: what a stage asks of the teacher, the same for an image at every step.

    Attributes:
        name: of what is computed, for a teacher and a cut.
        compute: from the teacher's features at the cut ``[N, *cut.shape]`` to nested tensors ``[N, ...]``.
    """

    name: str
    compute: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Optimizer:
    """How a stage takes its steps.

    Attributes:
        kind: Adam, or stochastic gradient descent.
        momentum: of ``sgd``.
        weight_decay: L2 penalty on everything that the stage trains.
        decays: parts of the stage (0 to 1) after which the learning rate falls to a tenth, as papers state schedules; None
            follows the run as a whole: warm-up, then half a cosine.
        max_gradient_norm: longer gradients are shortened to this; None leaves them. (A loss that is a sum over images and
            cells, as in some papers, has gradients far above 1: they would all be cut.)
    """

    kind: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    decays: Sequence[float] | None = None
    max_gradient_norm: float | None = 1.0


@dataclass
class Stage:
    """One stretch of training.

    Attributes:
        name: shown and kept in checkpoints.
        share: the part of the recipe's images that it gets.
        groups: what it trains; everything else stays as it is.
        loss: what it minimises.
        optimizer: how.
        prepare: called once before the stage's first step, with batches without end: sets what is measured on the result of
            the stages before it. It must come to the same result when it is called again in the same state.
        server_only: it trains nothing that decides a symbol or its code: it can be done again for a finished bundle.
        targets: kept for all images, where there is room, and then found in batches: the teacher need not run for them.
        over_images: whether ``loss`` is a mean or a sum over the batch's images: devices that share a batch put its parts
            together accordingly.
    """

    name: str
    share: float
    groups: Sequence[Group]
    loss: Callable[[Batch], Loss]
    optimizer: Optimizer = Optimizer()
    prepare: Callable[[Iterator[Batch]], None] | None = None
    server_only: bool = False
    targets: Targets | None = None
    over_images: Literal["mean", "sum"] = "mean"


class Bottleneck(nn.Module, ABC):
    """Encoder, quantizer and decoder.

    Attributes:
        shape: of the symbols, ``(C, H, W)``.
        alphabet: symbols are ``0 .. alphabet - 1``; 256 at most.
        levels: how many rate points it has; level 0 takes the fewest bytes.
        codec: ``rans`` (learned tables) or ``zstd``: what the symbols are coded with.
        ordered: whether neighbouring symbols stand for neighbouring values; indices into a codebook do not.
        sent: by level: so many of the first channels hold anything, symbols of the others are 0; None: all do.
    """

    shape: tuple[int, int, int]
    alphabet: int
    levels: int
    codec: Literal["rans", "zstd"]
    ordered: bool = True
    sent: Sequence[int] | None = None

    @abstractmethod
    def encode(self, images: Tensor, level: Tensor) -> Tensor:
        """Normalised images float32 ``[N, 3, H, W]`` and levels int64 ``[N]`` to symbols, whole float32 numbers."""

    @abstractmethod
    def decode(self, symbols: Tensor, level: Tensor) -> Tensor:
        """Symbols as float32 ``[N, C, H, W]`` and levels int64 ``[N]`` to features ``[N, *cut.shape]``."""

    def teacher_parts(self) -> Sequence[nn.Module]:
        """What in it belongs to the teacher: never trained, nor in training mode, which would change its statistics."""
        return ()

    def train(self, mode: bool = True) -> Bottleneck:
        """As any module's; what belongs to the teacher stays as it is."""
        super().train(mode)
        for module in self.teacher_parts():
            module.eval()
        return self

    @abstractmethod
    def encoder_state(self) -> dict[str, Tensor]:
        """All that decides which symbols an image gets; its hash goes into the codec fingerprint."""

    def density(self) -> npt.NDArray[np.float64] | None:
        """The learned probability of each symbol, float64 ``[levels, C, alphabet]``; None where none is learned."""
        return None

    def moving(self) -> Sequence[Tensor]:
        """What training steps change otherwise than by gradients (replaced codewords, counts), and steps depend on.

        Devices that train together take it from the first of them after every step.
        """
        return ()

    def tuned_tail(self) -> nn.Module | None:
        """The layers behind the cut as this bottleneck has tuned them; None where they stay the teacher's own."""
        return None

    def start_over(self) -> None:
        """Forgets what the run whose weights were loaded has decided for good: another run begins from them."""

    def fold(self) -> None:
        """Replaces what only training needs by what it comes to; called before export, nothing is trained after it.

        Channels that turned out to carry nothing are cut out here: :attr:`shape` may be smaller afterwards.
        """

    def figures(self) -> dict[str, Any]:
        """What training found that the bundle's figures should tell; asked for after :meth:`fold`."""
        return {}


S = TypeVar("S", bound=Settings)


class Preset(ABC, Generic[S]):
    """How one kind of bottleneck is made.

    Attributes:
        name: what recipes call it.
        train_defaults: its own defaults for the recipe's ``[train]``, where they are not everyone's.
        tables: what the recipe's ``[coding] tables`` may be, the default first.
    """

    name: str
    train_defaults: ClassVar[Mapping[str, Any]] = {}
    tables: ClassVar[Sequence[TablesKind]] = ("context", "channel", "none")

    @abstractmethod
    def build(self, problem: Problem, settings: S) -> Bottleneck:
        """An untrained bottleneck for the problem.

        Raises:
            BottleneckError: this preset cannot serve this cut or budget.
        """

    def calibrate(self, bottleneck: Any, problem: Problem, settings: S, batches: Iterator[Batch]) -> None:
        """Sets what is measured, not learned, before training; batches come without end, take what is needed."""

    def stages(self, bottleneck: Any, problem: Problem, settings: S) -> list[Stage]:
        """The training; no stages where nothing is learned."""
        return []
