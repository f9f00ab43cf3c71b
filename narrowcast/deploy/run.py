"""The stages, one after the other; each looks first whether it has anything to do."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.deployment import DeploySettings
from narrowcast.compiler.recipe import Recipe, load_deployment, load_recipe
from narrowcast.deploy.boards import chosen_boards, flash_boards, measured_board
from narrowcast.deploy.errors import FleetFailedError, PublishError, StageError, StageIoError
from narrowcast.deploy.kept import Kept, inputs_digest, read_kept, write_kept
from narrowcast.deploy.measure import make_report, profile_on_board
from narrowcast.deploy.publish import open_place, publish
from narrowcast.deploy.stages import STAGES, Deployment, Observer, StageResult, StageState
from narrowcast.devices.flash import FlashOptions
from narrowcast.devices.flash.agent.files import sha256_of
from narrowcast.devices.flash.errors import RolledBackError
from narrowcast.devices.fleet.inventory import Board
from narrowcast.transport.bundle import Bundle, SecretKey
from narrowcast.transport.errors import NarrowcastError
from narrowcast.transport.structs import nearest

SERVED_SECONDS = 60.0
_PAUSE_SECONDS = 0.25
Said = tuple[StageState, str, dict[str, Any]]


@dataclass(frozen=True)
class DeployOptions:
    """What is not in the recipe.

    Attributes:
        key: signs the bundle; None leaves it unsigned, which servers and boards refuse unless told.
        work: the compiler's work folder; what earlier runs did is kept there as well.
        skip: stages that are left out.
        afresh: nothing that an earlier run did is kept: compile, profile and every board are done again.
        replace: publish over another bundle of the same name and release.
        dry_run: say what would be done; boards are asked, nothing is changed anywhere.
        flash: given to all boards; goes before what the recipe says.
    """

    key: SecretKey | None = None
    work: Path = Path(".narrowcast")
    skip: Sequence[str] = ()
    afresh: bool = False
    replace: bool = False
    dry_run: bool = False
    flash: FlashOptions = field(default_factory=FlashOptions)


def deploy(recipe: str | Path, options: DeployOptions | None = None, observer: Observer | None = None) -> Deployment:
    """From a recipe to a running board.

    Args:
        recipe: its file, with a ``[deploy]``.
        options: what is not in it.
        observer: is told of every stage.

    Returns:
        what each stage did. A stage that fails ends it: ``exit_code`` and ``error`` are its.

    Raises:
        ConfigError: the recipe cannot be, or its inventory.
        StageError: a stage that is skipped does not exist, or the board that is to be profiled.
    """
    options, observer = options or DeployOptions(), observer or Observer()
    for stage in options.skip:
        if stage not in STAGES:
            raise StageError(f"no stage {stage!r}{nearest(stage, list(STAGES))}")
    path = Path(recipe)
    return Deploying(load_recipe(path), load_deployment(path), options, observer).run()


class Deploying:
    """One run."""

    def __init__(self, recipe: Recipe, settings: DeploySettings, options: DeployOptions, observer: Observer) -> None:
        self.recipe, self.settings, self.options, self.observer = recipe, settings, options, observer
        self.folder = Path(recipe.folder)
        self.bundle = self.folder / (settings.bundle or f"{recipe.name}.ncb")
        self.page = self.folder / (settings.report or f"{recipe.name}.html")
        self.record = self.folder / (settings.profile.output or f"{recipe.name}.run.json")
        self.kept_path = options.work / f"deploy-{recipe.name}.json"
        self.kept = Kept() if options.afresh else read_kept(self.kept_path)
        self.outdated = False  # the bundle that is there, in a dry run that would compile another
        self.boards = chosen_boards(settings, recipe)  # an inventory that is wrong is not found hours later
        if self.boards:
            measured_board(self.boards, settings, options)  # nor a name that is none

    def run(self) -> Deployment:
        """All stages."""
        doing: dict[str, Callable[[], Said]] = {
            "compile": self._compile, "publish": self._publish, "flash": self._flash, "profile": self._profile,
            "report": self._report,
        }  # fmt: skip
        results: list[StageResult] = []
        for name, stage in doing.items():
            result, error = self._stage(name, stage)
            results.append(result)
            self.observer.stage(result)
            if error is not None:
                return self._deployment(results, error.exit_code, str(error))
        return self._deployment(results)

    def _stage(self, name: str, stage: Callable[[], Said]) -> tuple[StageResult, NarrowcastError | None]:
        if name in self.options.skip:
            return StageResult(name=name, state="off", detail="skipped"), None
        self.observer.stage(StageResult(name=name, state="begun", detail=STAGES[name]))
        began = time.monotonic()
        try:
            state, detail, data = stage()
        except NarrowcastError as error:
            return _failed(name, error)
        except OSError as error:  # with what the stages before did, as of any other failure
            where = f" ({error.filename})" if error.filename else ""
            return _failed(name, StageIoError(f"{name}: {error.strerror or error}{where}"))
        seconds = round(time.monotonic() - began, 3) if state == "done" else None
        return StageResult(name=name, state=state, detail=detail, seconds=seconds, data=data), None

    def _deployment(self, results: list[StageResult], code: int = 0, error: str = "") -> Deployment:
        found = None
        with suppress(NarrowcastError, OSError):  # of another key, or damaged: what a stage says of it is what counts
            found = self._opened() if self.bundle.exists() and not self.outdated else None
        return Deployment(
            bundle=str(self.bundle), stages=results, model=found.manifest.name if found else None,
            release=found.manifest.release if found else None, exit_code=code, error=error,
        )  # fmt: skip

    def _compile(self) -> Said:
        key = self.options.key
        digest = inputs_digest(self.recipe, key.public.id if key else "")
        there = sha256_of(self.bundle) if self.bundle.exists() else ""
        if there and digest == self.kept.compiled and there == self.kept.bundle:
            return "kept", f"{self.bundle.name}: recipe, teacher and images are what they were", {}
        if self.options.dry_run:
            self.outdated = True
            return "planned", f"{self.bundle.name} from {len(self.recipe.tails) + 1} teachers", {}
        compiled = compile_recipe(
            self.recipe, self.bundle, key=key, work=self.options.work, progress=self.observer.progress
        )
        self._keep(compiled=digest, bundle=sha256_of(self.bundle))
        manifest = compiled.manifest
        return "done", f"{manifest.name} release {manifest.release}, {self.bundle.stat().st_size / 1e6:.1f} MB", {}

    def _publish(self) -> Said:
        where = self.settings.publish
        if not where:
            return "off", "[deploy] has no publish", {}
        found = self._wanted("publish")
        if found is None:
            return "planned", f"into {where}", {}
        name = f"{found.manifest.name}-{found.manifest.release}.ncb"
        with open_place(where, self.folder, self.options.flash.connection, self.observer.flash) as place:
            if self.options.dry_run:
                there = place.digest(name)
                said = "is there already" if there == sha256_of(self.bundle) else "is to be copied"
                return "planned", f"{name} {said}: {where}", {"name": name}
            copied = publish(place, self.bundle, name, replace=self.options.replace)
        served = self._served(found)
        return "done" if copied else "kept", f"{name} in {where}{served}", {"name": name}

    def _served(self, found: Bundle) -> str:
        """Waits until the server serves it; boards are not to be moved before."""
        if not self.settings.to:
            return "; no server was asked ([deploy] has no to)"
        from narrowcast.head.endpoints import parse_endpoints

        for address in parse_endpoints(self.settings.to):
            asyncio.run(self._ask(found, address))
        return f", served by {self.settings.to}"

    async def _ask(self, found: Bundle, address: Any) -> None:
        from narrowcast.head.models import list_models
        from narrowcast.transport.rpc.credentials import client_tls

        tls = client_tls(self._path(self.settings.tls), server_name=self.settings.tls_name or None)
        wanted = (found.manifest.name, found.manifest.fingerprint)
        deadline = time.monotonic() + SERVED_SECONDS
        while True:
            models = await list_models(address, tls=tls)
            releases = [m.release for m in models if (m.name, m.codec_fingerprint.hex()) == wanted]
            if any(release >= found.manifest.release for release in releases):
                return
            if time.monotonic() > deadline:
                seen = ", ".join(f"{m.name} {m.release}" for m in models) or "nothing"
                raise PublishError(
                    f"{address} does not serve {wanted[0]} release {found.manifest.release} after {SERVED_SECONDS:.0f} s "
                    f"(it serves {seen}): is {self.settings.publish} its --bundles, and the key trusted there? Its log says"
                )
            await asyncio.sleep(_PAUSE_SECONDS)

    def _flash(self) -> Said:
        if not self.boards:
            return "off", "[deploy] has neither board nor fleet", {}
        if self._wanted("flash") is None:
            return "planned", f"onto {len(self.boards)} boards", {}
        return flash_boards(self.bundle, self.boards, self.settings, self.options, self.folder, self.observer)

    def _profile(self) -> Said:
        if not self.boards:
            return "off", "[deploy] has neither board nor fleet", {}
        found = self._wanted("profile")
        if found is None:
            return "planned", "on the board", {}
        board, options = measured_board(self.boards, self.settings, self.options)
        wanted = self._measured_of(board)
        # A board that was not flashed may have other settings than it is to get: its record counts no further than that.
        unflashed = f"{wanted} as it was" if "flash" in self.options.skip else wanted
        there = self.record.exists() and sha256_of(self.record) == self.kept.run_digest
        if there and self.kept.profiled in (wanted, unflashed):
            return "kept", f"{self.record.name}, of this very bundle on {board.name}", {}
        if self.options.dry_run:
            return "planned", f"on {board.name}, into {self.record.name}", {}
        profile_on_board(
            found, board.destination, board.target, options, to=self.settings.to, settings=self.settings.profile.options,
            output=self.record, observer=self.observer.flash,
        )  # fmt: skip
        self._keep(profiled=unflashed, run=str(self.record), run_digest=sha256_of(self.record))
        return "done", f"on {board.name}, into {self.record.name}", {"run": str(self.record)}

    def _measured_of(self, board: Board) -> str:
        """Names all that a measurement depends on: the bundle, what the board is told, the profile's options."""
        said = [board.destination, self.settings.to, board.settings, self.settings.profile.options]
        digest = hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()
        return f"{sha256_of(self.bundle)} {digest}"

    def _report(self) -> Said:
        if not self.record.exists():
            return (
                ("planned", f"into {self.page.name}", {})
                if self.options.dry_run
                else ("off", "nothing was profiled", {})
            )
        if self.options.dry_run:
            return "planned", f"{self.page.name} of {self.record.name}", {}
        make_report(self.record, self.page)
        return "done", str(self.page), {"page": str(self.page)}

    def _wanted(self, stage: str) -> Bundle | None:
        """The bundle for a stage; None in a dry run that would compile another than is there, or the first."""
        if self.outdated:
            return None
        if self.bundle.exists():
            return self._opened()
        if self.options.dry_run:
            return None
        raise StageError(f"{stage} wants {self.bundle}, which is not there: do not skip compile")

    def _opened(self) -> Bundle:
        trusted = [self.options.key.public] if self.options.key else []
        return Bundle.open(self.bundle, "server", trusted=trusted, allow_unsigned=not trusted)

    def _keep(self, **changes: str) -> None:
        self.kept = msgspec.structs.replace(self.kept, **changes)
        write_kept(self.kept_path, self.kept)

    def _path(self, text: str) -> Path | None:
        return self.folder / text if text else None


def _failed(stage: str, error: NarrowcastError) -> tuple[StageResult, NarrowcastError]:
    report = error.report if isinstance(error, FleetFailedError | RolledBackError) else None
    data = report.as_dict() if report is not None else {}
    return StageResult(name=stage, state="failed", detail=str(error), data=data), error
