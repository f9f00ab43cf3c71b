"""What each cut of a network costs and gives, and whether splitting pays: the planner behind ``narrowcast cuts``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from narrowcast.compiler.bottlenecks import PRESETS, Bottleneck, BottleneckSettings, Problem
from narrowcast.compiler.bottlenecks.base import TablesKind
from narrowcast.compiler.cost import count_macs
from narrowcast.compiler.cuts import Cut, CutTable
from narrowcast.compiler.cuts.trace import Traced
from narrowcast.compiler.errors import BottleneckError, CompilerError, CutError, ExportError
from narrowcast.compiler.modules import Head, flat, output_names
from narrowcast.compiler.normalize import Normalize
from narrowcast.compiler.planner.answers import WORDS
from narrowcast.compiler.planner.boards import BoardTime, OtherBoard
from narrowcast.compiler.planner.capture import Captured, capture, sent_bytes
from narrowcast.compiler.planner.estimate import Estimate, estimate
from narrowcast.compiler.planner.images import SentImage, raw_image, sent_images
from narrowcast.compiler.planner.link import Decision, Link, PlanSettings, Way, decide, over_link
from narrowcast.compiler.planner.timing import Tails, Timing
from narrowcast.compiler.planner.trunk import TrunkChoice, choose_trunk, trunks_of
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.head.errors import BackendError
from narrowcast.transport.contract import InputContract
from narrowcast.transport.structs import nearest
from narrowcast.transport.tasks import Task

MOST_CUTS = 12  # that are planned where nobody names any: each takes seconds to export and to time


@dataclass(frozen=True)
class CutPlan:
    """A cut, with what was measured and estimated there; None is "not measured".

    Attributes:
        cut: the place.
        trunk: ``teacher`` or ``new``; empty where the preset has no choice.
        trunk_why: what decided, where there was a choice.
        head_macs: of the preset's head.
        head_ms: on this machine.
        board: on the board, where that is another machine; its energy where it is known.
        decoder_ms: on this machine.
        tail_ms: the layers behind the cut, on this machine.
        estimate: of its bytes.
        way: with the split's time over the link.
        why_not: what the preset or the export had against this cut.
    """

    cut: Cut
    trunk: str = ""
    trunk_why: str | None = None
    head_macs: int | None = None
    head_ms: float | None = None
    board: BoardTime | None = None
    decoder_ms: float | None = None
    tail_ms: float | None = None
    estimate: Estimate | None = None
    way: Way | None = None
    why_not: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.cut.as_dict(),
            "trunk": self.trunk or None,
            "trunk_why": self.trunk_why,
            "head_macs": self.head_macs,
            "head_ms": self.head_ms,
            "board_head": None if self.board is None else self.board._asdict(),
            "decoder_ms": self.decoder_ms,
            "tail_ms": self.tail_ms,
            "estimate": None if self.estimate is None else self.estimate.as_dict(),
            "split": None if self.way is None else self.way.as_dict(),
            "why_not": self.why_not,
        }


@dataclass(frozen=True)
class Plan:
    """What the planner found.

    Attributes:
        model: what was planned.
        preset: of the bottleneck.
        settings: that it reckoned with.
        link: None where none was given.
        images: how many the bytes were estimated on; 0 without any.
        kept_means: what ``keep`` is a part of, in words; None without images.
        macs: of the whole network.
        whole_ms: of the whole network, on this machine; None where it does not export.
        whole_board: the same on the board, where that is another machine.
        board: which one, and where its times are from; None where it is this machine.
        sent: the ways of sending the image.
        cuts: in the order of execution.
        decision: None without a link.
        machine: what the times were measured with.
        skipped: images that could not be read, and why.
    """

    model: str
    preset: str
    settings: PlanSettings
    link: Link | None
    images: int
    kept_means: str | None
    macs: int
    whole_ms: float | None
    whole_board: BoardTime | None
    board: dict[str, Any] | None
    sent: Sequence[SentImage]
    cuts: Sequence[CutPlan]
    decision: Decision | None
    machine: str
    skipped: Sequence[str] = ()

    @property
    def best_cut(self) -> CutPlan | None:
        """The cut to split at, if one must: the fastest over the link; else the fewest bytes; else None."""
        timed = [c for c in self.cuts if c.way is not None]
        if timed:
            return min(timed, key=lambda c: c.way.total_ms if c.way else 0.0)
        sized = [c for c in self.cuts if c.estimate is not None and c.head_ms is not None]
        return min(sized, key=lambda c: c.estimate.packet_bytes if c.estimate else 0.0) if sized else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "preset": self.preset,
            "settings": msgspec.to_builtins(self.settings),
            "link": None if self.link is None else self.link._asdict(),
            "images": self.images,
            "skipped": list(self.skipped),
            "kept_means": self.kept_means,
            "machine": self.machine,
            "macs": self.macs,
            "whole_ms": self.whole_ms,
            "whole_board": None if self.whole_board is None else self.whole_board._asdict(),
            "board": self.board,
            "sent_images": [one.as_dict() for one in self.sent],
            "cuts": [one.as_dict() for one in self.cuts],
            "ways": None if self.decision is None else [way.as_dict() for way in self.decision.ways],
            "best": None if self.decision is None or self.decision.best is None else self.decision.best.as_dict(),
            "split": None if self.decision is None else self.decision.split,
            "answer": None if self.decision is None else self.decision.why,
        }


def planned_cuts(table: CutTable, names: Sequence[str] = ()) -> list[Cut]:
    """The cuts to look at: those named; else the useful ones, outer modules first, at most 12, evenly spread.

    Raises:
        CutError: there is none of a name.
    """
    if names:
        known = {name: cut for cut in table.cuts for name in (cut.name, *cut.aliases)}
        for name in names:
            if name not in known:
                raise CutError(f"no cut {name!r}{nearest(name, [c.name for c in table.cuts if c.is_module])}")
        return [cut for cut in table.cuts if cut in [known[name] for name in names]]
    inside = [cut for cut in table.useful if 0.001 * table.macs < cut.macs_before < 0.999 * table.macs]
    useful = inside or table.useful
    chosen: list[Cut] = []
    for depth in sorted({cut.name.count(".") for cut in useful}):
        level = [cut for cut in useful if cut.name.count(".") == depth]
        room = MOST_CUTS - len(chosen)
        if room > 0:
            picked = np.unique(np.linspace(0, len(level) - 1, min(room, len(level))).round().astype(int))
            chosen += [level[k] for k in picked]
    return [cut for cut in useful if cut in chosen]


class Planner:
    """Plans one network.

    Args:
        table: its cuts.
        traced: its graph.
        network: itself.
        contract: how images become its input.
        bottleneck: the preset's settings.
        settings: see :class:`PlanSettings`.
        progress: told where it is.
        board: one that is not this machine: its times are those of ``board`` then.
        tables: ``[coding] tables``; None takes the preset's default.
    """

    def __init__(
        self,
        table: CutTable,
        traced: Traced,
        network: nn.Module,
        contract: InputContract,
        bottleneck: BottleneckSettings,
        settings: PlanSettings,
        progress: Progress = SILENT,
        board: OtherBoard | None = None,
        tables: TablesKind | None = None,
        task: Task | None = None,
    ) -> None:
        self.board = board
        self.tables, self.task = tables, task
        self.table, self.traced, self.network = table, traced, network
        self.contract, self.bottleneck, self.settings = contract, bottleneck, settings
        self.progress = progress
        self.cuts = planned_cuts(table, settings.cuts)
        self.normalize = Normalize(contract)
        self.timing = Timing(contract.size, settings.threads, board)
        self.preset = PRESETS[msgspec.to_builtins(bottleneck)["preset"]]
        self._teacher: tuple[float | None, BoardTime | None, Tails | None] | None = None

    def plan(self, frames: npt.NDArray[np.uint8] | None, link: Link | None) -> Plan:
        """Times every part, estimates bytes where there are ``frames`` uint8 ``[N, H, W, 3]``, and compares over a link."""
        whole_ms, whole_board, tails = self._teacher = self._teacher or self._time_teacher()
        captured = None
        if frames is not None:
            captured = capture(
                self.traced, self.normalize, frames[: self.settings.images], self.cuts, self.progress, self.task
            )
            if captured.answers.all_alike:
                self.progress.note(
                    f"the network gives one answer to all {captured.images} images (random weights?): estimated bytes say "
                    "nothing"
                )
        rows = list(self._rows(tails, captured, frames))
        sent = [raw_image(self.contract.size)] if link is not None else []
        if captured is not None and frames is not None and link is not None:
            sent = sent_images(
                self._answers_to, frames[: captured.images], captured.answers, self.settings.keep, self.progress
            )
        decision = None
        if link is not None:
            answer_bytes = captured.answer_bytes if captured is not None else self._answer_bytes()
            rows = [replace(row, way=self._split(row, link, answer_bytes)) for row in rows]
            ways = [
                *self._other_ways(whole_ms, whole_board, sent, link, answer_bytes),
                *(row.way for row in rows if row.way),
            ]
            decision = decide(ways)
        return Plan(
            model=self.table.model,
            preset=self.preset.name,
            settings=self.settings,
            link=link,
            images=0 if captured is None else captured.images,
            kept_means=None if captured is None else WORDS[captured.answers.kind],
            macs=self.table.macs,
            whole_ms=whole_ms,
            whole_board=whole_board,
            board=None if self.board is None else self.board.describe(),
            sent=sent,
            cuts=rows,
            decision=decision,
            machine=f"ONNX Runtime, {self.settings.threads} thread{'s' * (self.settings.threads > 1)}, this machine",
        )

    def _time_teacher(self) -> tuple[float | None, BoardTime | None, Tails | None]:
        """The whole network's time, and its graph to take tails from; None, with a note, where it does not export."""
        with self.progress.task("timing the whole network", 2, "exports") as task:
            try:
                with torch.no_grad():
                    names = output_names(self.network(torch.zeros(1, 3, *self.contract.size)))
                whole, whole_board = self.timing.whole_ms(self.normalize, self.network, names)
                task.advance(1)
                tails = Tails(self.traced, self.cuts, self.settings.threads)
                task.advance(1)
            except CompilerError as error:
                self.progress.note(f"the whole network cannot be timed: {error}")
                return None, None, None
        return whole, whole_board, tails

    def _rows(
        self, tails: Tails | None, captured: Captured | None, frames: npt.NDArray[np.uint8] | None
    ) -> Iterator[CutPlan]:
        until = time.monotonic() + self.settings.seconds
        with self.progress.task("cuts", len(self.cuts), "cuts") as task:
            for cut in self.cuts:
                if time.monotonic() < until:
                    yield self._row(cut, tails, captured, frames)
                else:
                    yield CutPlan(cut, why_not=f"the time for planning was up ({self.settings.seconds:g} s)")
                task.advance(1)

    def _row(
        self, cut: Cut, tails: Tails | None, captured: Captured | None, frames: npt.NDArray[np.uint8] | None
    ) -> CutPlan:
        row = CutPlan(cut)
        try:
            problem = Problem(self.traced, cut, self.contract, torch.device("cpu"))
            row, bottleneck = self._with_head(row, problem)
            row = replace(row, decoder_ms=self.timing.decoder_ms(problem, bottleneck))
            if tails is not None:
                row = replace(row, tail_ms=tails.tail_ms(cut))
            if captured is not None and frames is not None:
                found = estimate(
                    problem, bottleneck, self.preset, self.bottleneck, captured, frames, self.settings.keep, self.tables
                )
                row = replace(row, estimate=found)
        except (CompilerError, BackendError) as error:
            return replace(row, why_not=str(error))
        return row

    def _with_head(self, row: CutPlan, problem: Problem) -> tuple[CutPlan, Bottleneck]:
        """The preset's head for the cut, timed with every trunk that it may have, and the one that is chosen.

        Raises:
            BottleneckError, ExportError: there is none.
        """
        built: dict[str, Bottleneck] = {}
        times: dict[str, float] = {}
        boards: dict[str, BoardTime | None] = {}
        refused: CompilerError | None = None
        for name, settings in trunks_of(self.bottleneck).items():
            try:
                candidate = self.preset.build(problem, settings).eval()
                times[name], built[name] = self.timing.head_ms(problem, candidate), candidate
                boards[name] = self.timing.board_head(problem, candidate)
            except (BottleneckError, ExportError) as error:
                refused = error
        if not times:
            assert refused is not None
            raise refused
        on_board = {name: times[name] if (board := boards[name]) is None else board.ms for name in times}
        choice = TrunkChoice(next(iter(times)), "", on_board)
        if len(trunks_of(self.bottleneck)) > 1:
            choice = choose_trunk(row.cut.macs_before, getattr(self.bottleneck, "budget", 0), on_board)
        bottleneck = built[choice.trunk]
        frame, level = torch.zeros(1, *self.contract.size, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
        macs = count_macs(Head(self.normalize, bottleneck).eval(), frame, level)
        return (
            replace(
                row,
                trunk=choice.trunk,
                trunk_why=choice.why or None,
                head_macs=macs,
                head_ms=times[choice.trunk],
                board=boards[choice.trunk],
            ),
            bottleneck,
        )

    @torch.no_grad()
    def _answers_to(self, frames: Tensor) -> Sequence[Tensor]:
        return flat(self.traced.module(self.normalize(frames)))

    @torch.no_grad()
    def _answer_bytes(self) -> float:
        image = torch.zeros(1, *self.contract.size, 3, dtype=torch.uint8)
        return sent_bytes(self.task, self.traced.module(self.normalize(image)), self.contract.size)

    def _split(self, row: CutPlan, link: Link, answer_bytes: float) -> Way | None:
        if row.estimate is None or row.head_ms is None or row.decoder_ms is None or row.tail_ms is None:
            return None
        return over_link(
            link,
            "split",
            row.cut.name,
            board_ms=row.head_ms * self.settings.slowdown if row.board is None else row.board.ms,
            up_bytes=row.estimate.packet_bytes,
            server_ms=row.decoder_ms + row.tail_ms,
            answer_bytes=answer_bytes,
        )

    def _other_ways(
        self,
        whole_ms: float | None,
        whole_board: BoardTime | None,
        sent: Sequence[SentImage],
        link: Link,
        answer_bytes: float,
    ) -> Iterator[Way]:
        if whole_ms is None:
            return
        # An image is encoded as much slower there as the whole network runs: nothing else is known of it.
        slowdown = self.settings.slowdown if whole_board is None else whole_board.ms / whole_ms
        yield Way("local", "", whole_ms * slowdown, 0.0, 0.0, 0.0)
        for one in sent:
            yield over_link(
                link,
                "image",
                one.codec,
                board_ms=one.encode_ms * slowdown,
                up_bytes=one.mean_bytes,
                server_ms=one.decode_ms + whole_ms,
                answer_bytes=answer_bytes,
            )
