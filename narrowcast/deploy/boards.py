"""The boards of a deployment: one, or those of an inventory; flashed alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from narrowcast.compiler.deployment import DeploySettings
from narrowcast.compiler.recipe import Recipe
from narrowcast.deploy.errors import FleetFailedError, StageError
from narrowcast.deploy.stages import StageState
from narrowcast.devices.flash import FlashOptions, flash
from narrowcast.devices.flash.agent.files import sha256_of
from narrowcast.devices.fleet.flashing import BundleFlasher, done_of, options_of
from narrowcast.devices.fleet.inventory import Board, BoardEntry, BoardSettings, load_inventory, one_board, select
from narrowcast.devices.fleet.rollout import Rollout
from narrowcast.devices.fleet.state import open_state
from narrowcast.devices.fleet.waves import Threshold, plan_waves
from narrowcast.transport.bundle import Bundle

if TYPE_CHECKING:
    from narrowcast.deploy.run import DeployOptions
    from narrowcast.deploy.stages import Observer


def chosen_boards(settings: DeploySettings, recipe: Recipe) -> list[Board]:
    """All boards that are flashed; none where the recipe names none. They send to ``[deploy] to`` unless they say otherwise.

    Raises:
        InventoryError, SelectionError: they cannot be.
    """
    folder = Path(recipe.folder)
    if settings.fleet is not None:
        fleet = settings.fleet
        boards = select(load_inventory(folder / fleet.inventory), fleet.groups)
        _threshold_and_waves(settings, boards)
    elif settings.board is not None:
        said = {field.name: getattr(settings.board, field.name) for field in msgspec.structs.fields(BoardSettings)}
        targets = recipe.export.targets
        if said["target"] is None and len(targets) == 1:
            said["target"] = targets[0]
        entry = BoardEntry(name="board", ssh=settings.board.ssh, **said)
        boards = [one_board(entry, folder, "[deploy.board]")]
    else:
        boards = []
    return [_sending(board, settings.to) for board in boards]


def _sending(board: Board, to: str) -> Board:
    said = board.settings
    if not to or said.to is not None or said.config is not None:
        return board
    return replace(board, settings=msgspec.structs.replace(said, to=to))


def _threshold_and_waves(settings: DeploySettings, boards: Sequence[Board]) -> tuple[Threshold, Any]:
    fleet = settings.fleet
    assert fleet is not None
    waves = plan_waves([board.name for board in boards], canaries=fleet.canary, size=fleet.wave)
    return Threshold.parse(fleet.stop_after), waves


def flash_boards(
    bundle: Path,
    boards: Sequence[Board],
    settings: DeploySettings,
    options: DeployOptions,
    folder: Path,
    observer: Observer,
) -> tuple[StageState, str, dict[str, Any]]:
    """The stage.

    Raises:
        FleetFailedError: not all boards of a fleet run it.
        FlashError: the one board does not.
    """
    given = replace(options.flash, dry_run=options.dry_run, trusted=_trusted(options))
    if settings.fleet is None:
        (board,) = boards
        report = flash(
            bundle,
            board.destination,
            board.target,
            options=options_of(board, given, interactive=True),
            observer=observer.flash,
        )
        done = done_of(report)
        state: StageState = {"planned": "planned", "unchanged": "kept"}.get(done.state, "done")  # type: ignore[assignment]
        return state, f"{report.release} on {board.destination}: {done.detail}", report.as_dict()
    flasher = BundleFlasher(
        Bundle.open(bundle, "device", trusted=given.trusted, allow_unsigned=given.allow_unsigned), given
    )
    threshold, waves = _threshold_and_waves(settings, boards)

    def roll(state: Any) -> Any:
        return Rollout(
            boards, waves, flasher, parallel=settings.fleet.parallel, threshold=threshold, state=state,  # type: ignore[union-attr]
            dry_run=options.dry_run, changed=observer.board,
        ).run()  # fmt: skip

    if options.dry_run:
        report_of_all = roll(None)
    else:
        path = folder / settings.fleet.inventory
        with open_state(
            path.with_name(f"{path.stem}.state.json"), f"flash {sha256_of(bundle)}", afresh=options.afresh
        ) as opened:
            report_of_all = roll(opened)
    counts = ", ".join(f"{count} {word}" for word, count in report_of_all.counts.items())
    if report_of_all.outcome != "done":
        reason = f" ({report_of_all.reason})" if report_of_all.reason else ""
        raise FleetFailedError(f"{counts} of {len(boards)} boards{reason}", report_of_all.exit_code, report_of_all)
    kept = set(report_of_all.counts) <= {"verified", "unchanged"}
    state = "planned" if options.dry_run else "kept" if kept else "done"
    return state, f"{counts} of {len(boards)} boards", report_of_all.as_dict()


def measured_board(
    boards: Sequence[Board], settings: DeploySettings, options: DeployOptions
) -> tuple[Board, FlashOptions]:
    """The board that is profiled, and the options that it was flashed with.

    Raises:
        StageError: no such board.
    """
    name = settings.profile.board
    found = [board for board in boards if not name or board.name == name]
    if not found:
        raise StageError(
            f"[deploy.profile] board is {name!r}; the boards are {', '.join(board.name for board in boards)}"
        )
    return found[0], options_of(found[0], replace(options.flash, trusted=_trusted(options)), interactive=True)


def _trusted(options: DeployOptions) -> Sequence[Any] | None:
    return [options.key.public] if options.key else options.flash.trusted
