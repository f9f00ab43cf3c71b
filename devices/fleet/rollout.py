"""A rollout: wave by wave, several boards at a time, stopped by a failed canary or by too many failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from narrowcast.devices.fleet.errors import NotWellError
from narrowcast.devices.fleet.flasher import Flasher
from narrowcast.devices.fleet.inventory import Board
from narrowcast.devices.fleet.results import BAD, GOOD, BoardResult, BoardState, FleetReport, Outcome
from narrowcast.devices.fleet.state import RolloutState
from narrowcast.devices.fleet.waves import Threshold, Wave
from narrowcast.transport.errors import NarrowcastError

ROLLED_BACK = 5
_WAKE_SECONDS = 0.1  # how often Python looks for Ctrl-C while it waits for threads
WELL_SECONDS = 30.0  # within which a board that nothing was done with must be well
_ASK_SECONDS = 1.0


class Rollout:
    """One run.

    Args:
        boards: all boards of it.
        waves: by name, in order; of :func:`narrowcast.devices.fleet.waves.plan_waves`.
        flasher: does it, to one board.
        parallel: boards at a time.
        threshold: at how many failures it stops; a failed canary always stops it, behind its wave.
        state: what earlier runs did, and where this one's progress is kept; None keeps nothing.
        dry_run: nothing is to be done; boards that have it already are not asked whether it works.
        changed: told of every board's every change, one at a time.
    """

    def __init__(
        self,
        boards: Sequence[Board],
        waves: Sequence[Wave],
        flasher: Flasher,
        *,
        parallel: int = 4,
        threshold: Threshold = Threshold(),  # noqa: B008  (frozen)
        state: RolloutState | None = None,
        dry_run: bool = False,
        changed: Callable[[BoardResult], None] = lambda result: None,
    ) -> None:
        self._boards = {board.name: board for board in boards}
        self._waves = waves
        self._flasher = flasher
        self._parallel = parallel
        self._threshold = threshold
        self._state = state
        self._dry_run = dry_run
        self._changed = changed
        self._lock = threading.RLock()
        self._stopped = ""
        self._interrupted = False
        self._fault: Exception | None = None
        self._results = {
            name: BoardResult(name=name, destination=self._boards[name].destination, wave=wave.title)
            for wave in waves
            for name in wave.names
        }

    @property
    def results(self) -> list[BoardResult]:
        """Where every board is, in the order of the rollout."""
        with self._lock:
            return list(self._results.values())

    def run(self) -> FleetReport:
        """Does all boards, as far as the threshold lets it.

        Ctrl-C begins no further board and waits for those that are under way: they end in the old or the new release
        whatever happens here. A second one does not wait.
        """
        for wave in self._waves:
            self._run_wave(wave)
            bad = [name for name in wave.names if self._results[name].state in BAD]
            if wave.canary and bad and not self._interrupted:
                self._stop(f"of the canaries, {', '.join(bad)} failed; no other board was touched")
            if self._stopped:
                break
        for result in self.results:
            if result.state == "waiting":
                self._set(result.name, "not-begun", detail=self._stopped)
        return FleetReport(outcome=self._outcome(), boards=self.results, reason=self._stopped)

    def _run_wave(self, wave: Wave) -> None:
        names = iter(wave.names)
        # Daemons: a second Ctrl-C ends the process, whatever they wait for.
        workers = [
            threading.Thread(target=self._work, args=(names,), name=f"board-{k}", daemon=True)
            for k in range(min(self._parallel, len(wave.names)))
        ]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            self._wait(workers)
        if self._fault is not None:
            raise self._fault

    def _wait(self, workers: list[threading.Thread]) -> None:
        try:
            for worker in workers:
                worker.join(_WAKE_SECONDS)
        except KeyboardInterrupt:
            if self._interrupted:
                raise
            self._interrupted = True
            self._stop("interrupted")

    def _work(self, names: Iterator[str]) -> None:
        while not self._stopped:
            with self._lock:
                name = next(names, None)
            if name is None:
                return
            try:
                self._board(name)
            except Exception as error:  # noqa: BLE001  (no board's own failure, such as a full disk under the state)
                self._fault = self._fault or error
                self._stop(str(error))

    def _board(self, name: str) -> None:
        board, began = self._boards[name], time.monotonic()
        self._set(name, "running")
        try:
            done = self._once(board)
        except NarrowcastError as error:
            # A board that took itself back has said so; of a link that Ctrl-C ended with us nothing follows for the board.
            state: BoardState = "interrupted" if self._interrupted else "failed"
            state = "rolled-back" if error.exit_code == ROLLED_BACK else state
            self._ended(name, state, str(error), began, exit_code=error.exit_code)
        except Exception as error:  # noqa: BLE001  (one board's surprise must not end the others)
            self._ended(name, "failed", f"unexpected {type(error).__name__}: {error}", began, exit_code=1)
        else:
            self._ended(name, done.state, done.detail, began, release=done.release, step="")

    def _once(self, board: Board) -> BoardResult:
        wants, why = self._flasher.wants(board), ""
        self._set(board.name, "running", wants=wants)
        known = self._state.done(board.name, wants) if self._state is not None else None
        if known is not None and known.release is not None:
            self._set(board.name, "running", step="status", detail=f"whether it still runs {known.release}")
            why = self._flasher.still(board, known.release)
            if not why:
                return msgspec.structs.replace(known, state="verified", detail="as an earlier run left it")
        done = self._flasher.act(board, lambda step, detail: self._set(board.name, "running", step=step, detail=detail))
        if done.state == "unchanged" and done.release is not None and not self._dry_run:
            self._check_well(board, done.release)
        detail = f"{done.detail} (an earlier run had done it, but {why})".strip() if why else done.detail
        return BoardResult(
            name=board.name, destination=board.destination, state=done.state, detail=detail, release=done.release
        )

    def _check_well(self, board: Board, release: str) -> None:
        """Of a board that has the release already no gate has asked whether it works.

        Raises:
            NotWellError: it does not.
        """
        deadline = time.monotonic() + WELL_SECONDS
        while why := self._flasher.still(board, release):
            if self._interrupted or time.monotonic() >= deadline:
                raise NotWellError(
                    f"{board.destination} has {release} already, but {why}: narrowcast flash logs tells more"
                )
            self._set(board.name, "running", step="status", detail=why)
            time.sleep(_ASK_SECONDS)

    def _ended(self, name: str, state: BoardState, detail: str, began: float, **more: object) -> None:
        result = self._set(name, state, detail=detail, seconds=round(time.monotonic() - began, 3), **more)
        if self._state is not None and state != "planned":
            self._state.put(result)
        with self._lock:
            failed = sum(result.state in BAD for result in self._results.values())
            if state in BAD and not self._stopped and self._threshold.reached(failed, len(self._results)):
                self._stop(f"{failed} of {len(self._results)} boards failed; it stops at {self._threshold}")

    def _set(self, name: str, state: BoardState, **more: object) -> BoardResult:
        with self._lock:
            result = self._results[name] = msgspec.structs.replace(self._results[name], state=state, **more)
            self._changed(result)
            return result

    def _stop(self, reason: str) -> None:
        with self._lock:
            self._stopped = reason

    def _outcome(self) -> Outcome:
        if all(result.state in GOOD for result in self.results):
            return "done"
        if self._interrupted:
            return "interrupted"
        return "stopped" if any(result.state == "not-begun" for result in self.results) else "failed"
