"""What ``narrowcast cuts`` shows once it is to plan: options, tables, and where the times are from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from narrowcast.cli.options import at_least
from narrowcast.cli.show import TerminalProgress, print_json, print_table
from narrowcast.text import human_bytes, human_count, percent
from narrowcast.transport.errors import ConfigError

if TYPE_CHECKING:
    from narrowcast.compiler.planner.boards import BoardTime, OtherBoard
    from narrowcast.compiler.planner.link import Link, PlanSettings, Way
    from narrowcast.compiler.planner.plan import CutPlan, Plan

# Any of these makes the verb measure, not only list.
_PLANNING = (
    "uplink", "downlink", "rtt", "data", "weights", "preset", "encoder_macs", "keep", "images", "slowdown", "threads",
    "seconds", "at", "target", "plot", "calibration", "on",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that plan."""
    link = parser.add_argument_group("what pays (any of these makes it measure; see docs/planning.md)")
    link.add_argument("--uplink", metavar="RATE", help="from the board to the server: 5mbit, 800kbit")
    link.add_argument("--rtt", metavar="TIME", help="round trip: 20ms (with --uplink)")
    link.add_argument("--downlink", metavar="RATE", help="back to the board (default: as the uplink)")
    link.add_argument("--data", type=Path, metavar="DIR", help="images to estimate bytes on; no labels are needed")
    link.add_argument("--images", type=at_least(2), metavar="N", help="of them, drawn at random (default: 96)")
    link.add_argument("--keep", type=float, metavar="PART", help="of the teacher's answers to keep (default: 0.97)")
    link.add_argument("--at", metavar="CUT,...", help="look at these cuts only (default: up to 12)")
    link.add_argument("--slowdown", type=float, metavar="F", help="the board takes F times as long as this machine")
    link.add_argument(
        "--target",
        metavar="T",
        help="the kind of board, or a file of your own: its calibration predicts, where it has one",
    )
    link.add_argument("--calibration", type=Path, metavar="FILE", help="predict the board's times (probe --calibrate)")
    link.add_argument("--on", metavar="USER@HOST", help="measure the board's times there, over ssh")
    link.add_argument("--python", metavar="FILE", default="python3", help="there, with onnxruntime (default: python3)")
    link.add_argument("--seconds", type=float, metavar="S", help="begin no further cut after these (default: 900)")
    link.add_argument("--threads", type=at_least(1), metavar="N", help="to time with (default: 1)")
    link.add_argument("--plot", type=Path, metavar="FILE.svg", help="write bytes and times as .svg or .png")
    model = parser.add_argument_group("for a MODEL that is no recipe")
    model.add_argument("--weights", metavar="FILE", help="its trained weights; answers of random ones mean nothing")
    model.add_argument("--mean", nargs=3, type=float, metavar=("R", "G", "B"), help="of the input, for pixels 0..1")
    model.add_argument("--std", nargs=3, type=float, metavar=("R", "G", "B"), help="likewise")
    model.add_argument("--preset", metavar="NAME", help="of the bottleneck (default: shallow-residual)")
    model.add_argument("--encoder-macs", metavar="N", help="what its encoder may take: 150M")


def wanted(args: argparse.Namespace) -> bool:
    """Whether the options ask for a plan."""
    return any(getattr(args, name) is not None for name in _PLANNING) or args.model.endswith(".toml")


def run(args: argparse.Namespace) -> int:
    """Plans, and shows it."""
    from narrowcast.compiler.planner.entry import plan
    from narrowcast.compiler.planner.plot import write_plan_plot
    from narrowcast.compiler.plots import check_plot

    if args.model.endswith(".toml") and args.size != [224]:
        raise ConfigError(f"--size is for a model that is no recipe: {args.model} says it")
    if args.all:
        raise ConfigError("--all lists every cut and measures nothing; name cuts with --at")
    if args.plot:
        check_plot(args.plot)
    recipe = args.model.endswith(".toml")
    settings = _settings(args)
    link = _link(args, settings, recipe=recipe)
    board = _board(args, settings)
    where = "" if board is not None else _times_of(args.target, settings.slowdown)
    progress = TerminalProgress(quiet=args.quiet)
    found = plan(
        args.model,
        data=args.data,
        link=link,
        settings=settings,
        weights=None if args.weights is None else str(Path(args.weights).absolute()),
        contract=None if recipe else _contract(args),
        bottleneck=_bottleneck(args, recipe=recipe),
        progress=progress,
        board=board,
    )
    if found.board is not None:
        where = found.board["words"]
    if args.json:
        print_json({**found.as_dict(), "times_of": where})
    else:
        _print(found, where)
    if args.plot:
        write_plan_plot(found, args.plot)
    return 0


def _settings(args: argparse.Namespace) -> PlanSettings:
    """The recipe's ``[plan]`` where there is one, and what the options say in its place."""
    from narrowcast.compiler.planner.link import PlanSettings
    from narrowcast.compiler.recipe import load_recipe
    from narrowcast.transport.structs import from_mapping

    given = load_recipe(Path(args.model)).plan if args.model.endswith(".toml") else PlanSettings()
    names = ("uplink", "rtt", "downlink", "keep", "images", "slowdown", "threads", "seconds")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.at is not None:
        options["cuts"] = [name.strip() for name in args.at.split(",") if name.strip()]
    return from_mapping(PlanSettings, {**msgspec.to_builtins(given), **options}, "planning")


def _link(args: argparse.Namespace, settings: PlanSettings, *, recipe: bool) -> Link | None:
    """The link, where there is one: a recipe's ``[plan]`` has one always."""
    if args.uplink is None and args.rtt is None and args.downlink is None and not recipe:
        return None
    if not recipe and (args.uplink is None or args.rtt is None):
        missing = "--uplink" if args.uplink is None else "--rtt"
        raise ConfigError(f"a link has a rate and a round trip: {missing} is missing (--uplink 5mbit --rtt 20ms)")
    return settings.link


def _contract(args: argparse.Namespace) -> Any:
    from narrowcast.transport.contract import InputContract
    from narrowcast.transport.structs import from_mapping

    options = {name: getattr(args, name) for name in ("mean", "std") if getattr(args, name) is not None}
    return from_mapping(InputContract, {"size": [args.size[0], args.size[-1]], **options}, "input")


def _bottleneck(args: argparse.Namespace, *, recipe: bool) -> Any:
    from narrowcast.compiler.planner.entry import preset_settings
    from narrowcast.compiler.recipe import DEFAULT_PRESET

    if recipe:
        for name in ("preset", "encoder_macs", "mean", "std"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is for a model that is no recipe: {args.model} says it")
        return None
    options = {} if args.encoder_macs is None else {"encoder_macs": args.encoder_macs}
    return preset_settings(args.preset or DEFAULT_PRESET, **options)


def _board(args: argparse.Namespace, settings: PlanSettings) -> OtherBoard | None:
    """A board that is not this machine, where the options name one."""
    from narrowcast.devices.targets import calibration_file

    given = [name for name in ("calibration", "on") if getattr(args, name) is not None]
    if len(given) > 1:
        raise ConfigError("--calibration predicts the board's times, --on measures them: give one of the two")
    file = args.calibration or (calibration_file(args.target) if args.target and not given else None)
    if file is None and args.on is None:
        return None
    if args.slowdown is not None:
        raise ConfigError("--slowdown scales this machine's times; with the board's own there is nothing to scale")
    from narrowcast.compiler.planner.boards import CalibratedBoard, SshBoard
    from narrowcast.devices.calibration import load_calibration

    if args.on is not None:
        return SshBoard(args.on, settings.threads, python=args.python)
    return CalibratedBoard(load_calibration(file or ""), settings.threads)


def _times_of(target: str | None, slowdown: float) -> str:
    """Whose times the board's are."""
    from narrowcast.devices.probe import probe
    from narrowcast.devices.targets import load_target

    if target is None:
        return "this machine" if slowdown == 1 else f"this machine, times {slowdown:g}"
    title = load_target(target).title
    here = probe().target
    if here is not None and here == target and slowdown == 1:
        return f"this machine, a {title}"
    if slowdown == 1:
        return f"this machine, which is no {title}: --slowdown says how many times as long that takes"
    return f"a {title}, as this machine times {slowdown:g}"


def _print(found: Plan, where: str) -> None:
    rows = [_row(row, best=_is_best(found, row)) for row in found.cuts]
    energy = any(row.board is not None and row.board.mj is not None for row in found.cuts)
    if energy:
        rows = [[*cells[:10], _mj(row.board), *cells[10:]] for cells, row in zip(rows, found.cuts, strict=True)]
    columns = ["", "cut", ">features", ">float32"]
    columns += [">MACs before", ">parameters", ">MACs after", ">parameters", "trunk", ">head"]
    columns += [*([">its energy"] if energy else []), ">tail", ">est. packet"]
    columns += [">range", ">features at that", ">information"]
    if found.link is not None:
        columns.append(">end to end")
    else:
        rows = [row[:-1] for row in rows]
    times = "times on this machine" if found.board is None else f"heads on {where}; tails on this machine"
    print_table(
        f"{found.model}: {human_count(found.macs)} MACs, {found.preset}, {times}", columns, rows,
        note=_note(found),
    )  # fmt: skip
    if found.decision is None:
        return
    ways = [_way(way, best=way is found.decision.best) for way in found.decision.ways if way.name != "split"]
    split = found.decision.best_split
    if split is not None:
        ways.append(_way(split, best=split is found.decision.best))
    print_table(
        f"\nOver {found.link}; the board is {where}",
        ["", "way", ">on the board", ">bytes up", ">link", ">server", ">in all"],
        ways,
        note=f"\n{found.decision.why}",
    )  # fmt: skip


def _is_best(found: Plan, row: CutPlan) -> bool:
    return row.way is not None and found.decision is not None and row.way is found.decision.best_split


def _row(row: CutPlan, *, best: bool) -> list[str]:
    cut, estimate = row.cut, row.estimate
    head_ms = row.head_ms if row.board is None else row.board.ms
    server = None if row.tail_ms is None or row.decoder_ms is None else row.tail_ms + row.decoder_ms
    if row.why_not is not None:
        ends = [row.trunk, _ms(head_ms), _ms(server), "-", "-", "-", "-", "-"]
    else:
        ends = [
            row.trunk,
            _ms(head_ms),
            _ms(server),
            human_bytes(estimate and estimate.packet_bytes),
            "-" if estimate is None else f"{human_bytes(estimate.low)} to {human_bytes(estimate.high)}",
            human_bytes(estimate and estimate.feature_bytes),
            human_bytes(estimate and estimate.information_bytes),
            _ms(row.way and row.way.total_ms),
        ]
    return [
        "*" if best else "",
        cut.name,
        "x".join(map(str, cut.shape)),
        human_bytes(cut.float_bytes),
        human_count(cut.macs_before),
        human_count(cut.params_before),
        human_count(cut.macs_after),
        human_count(cut.params_after),
        *ends,
    ]


def _way(way: Way, *, best: bool) -> list[str]:
    name = {"local": "all on the board", "image": f"send the image ({way.detail})", "split": f"split at {way.detail}"}
    sent = "-" if way.name == "local" else human_bytes(way.up_bytes)
    return [
        "*" if best else "", name[way.name], _ms(way.board_ms), sent, _ms(way.link_ms), _ms(way.server_ms),
        _ms(way.total_ms),
    ]  # fmt: skip


def _note(found: Plan) -> str:
    lines = [
        f"\n{found.machine}; medians. Head: the preset's encoder for that cut. Tail: decoder and the layers behind."
    ]
    if found.images:
        lines.append(
            f"Bytes: on {found.images} images, at {percent(found.settings.keep)} kept ({found.kept_means}); four fifths of "
            "compiled bottlenecks lie in the range."
        )
    else:
        lines.append("No bytes without images: --data DIR. No labels are needed.")
    if found.link is None:
        lines.append("Which way is the fastest depends on the link: --uplink 5mbit --rtt 20ms.")
    power = None if found.board is None else found.board.get("power")
    if power:
        lines.append(
            f"Energy: gross (net of idle) for one head, from {power['busy_mw']:.0f} mW busy, {power['idle_mw']:.0f} mW "
            f"idle: {power['scope']}. As uncertain as the times, and the power of other networks may differ."
        )
    lines += [f"{row.cut.name}: {row.why_not}" for row in found.cuts if row.why_not is not None]
    return "\n".join(lines)


def _mj(time: BoardTime | None) -> str:
    return "-" if time is None or time.mj is None else f"{time.mj:.3g} mJ ({time.net_mj or 0:.3g})"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"
