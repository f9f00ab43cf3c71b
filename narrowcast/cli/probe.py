"""``narrowcast probe``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.cli.options import at_least
from narrowcast.cli.show import TerminalProgress, print_json, print_table, stderr, stdout
from narrowcast.text import human_bytes
from narrowcast.transport.errors import ConfigError

if TYPE_CHECKING:
    from narrowcast.devices.power.sampler import SamplerInfo
    from narrowcast.devices.power.trace import Trace
    from narrowcast.devices.probe import Board, Measurable

EXAMPLES = """\
examples:
  narrowcast probe
  narrowcast probe --json
  narrowcast probe --sample 10                                   power over ten seconds, and what sampling costs
  narrowcast probe --meter ina219:bus=1,address=0x40,shunt_ohm=0.1
  narrowcast probe --record board.jsonl --seconds 60
  narrowcast probe --root board.jsonl --sample 60                a recorded board
  narrowcast probe --root recorded-board/ --architecture aarch64
  narrowcast probe --targets
  narrowcast probe --target my-board.toml
  narrowcast probe --calibrate my-board.json --seconds 120
"""
_SOURCE = "narrowcast probe --record"
# Shown one by one up to here; a many-core machine has hundreds of clocks.
_MANY = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--targets", action="store_true", help="list the kinds of board that narrowcast knows")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="PATH",
        help="a recorded board: a folder of files, or a recording",
    )
    parser.add_argument("--architecture", choices=["aarch64", "x86_64"], help="of a recorded folder")
    parser.add_argument(
        "--meter", metavar="NAME:SETTINGS", help="a meter on the supply instead of the board's own sensors"
    )
    parser.add_argument("--target", metavar="T", help="the kind of board, or a file of your own (default: recognised)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="measure small networks here, for `narrowcast cuts --calibration`",
    )
    what.add_argument("--sample", type=_seconds, metavar="SECONDS", help="sample power for so long")
    what.add_argument(
        "--record", type=Path, metavar="FILE", help="record this board's files over time, to replay elsewhere"
    )
    parser.add_argument("--threads", type=at_least(1), default=1, metavar="N", help="to calibrate with (default 1)")
    parser.add_argument(
        "--seconds", type=_seconds, help="to record for (default 30), or about how long to calibrate (default 120)"
    )
    parser.add_argument(
        "--hz", type=_seconds, help="looks a second, to sample or to record; the sensor's own rate if not given"
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    if args.targets:
        return _targets(args.json)
    if args.record:
        return _record(args)
    from narrowcast.devices.probe import probe

    board = probe(args.root, architecture=args.architecture, meter=args.meter, target=args.target)
    if args.calibrate:
        return _calibrate(args, board)
    sampled = _sample(args, board) if args.sample else None
    if args.json:
        print_json(board.as_dict() | ({"sampled": sampled} if sampled else {}))
        return 0
    console, identity = stdout(), board.identity
    backends = ", ".join(f"{name} {version}" for name, version in board.backends.items() if version) or "none installed"
    system = [identity.os or "unknown system", f"kernel {identity.kernel or 'unknown'}"]
    system += [identity.jetpack] if identity.jetpack else []
    here = " (of this machine, not of the recorded board)" if board.recorded else ""
    facts = {
        "board": f"{board.model or 'does not say what it is'}{' (a virtual machine)' if identity.virtual else ''}",
        "target": f"{board.target} ({board.title})" if board.target else "none that narrowcast knows",
        "cpu": f"{board.cpus} x {identity.cpu or board.architecture}, {board.architecture}",
        "memory": human_bytes(board.memory_bytes),
        "system": ", ".join(system),
        "python": f"{board.python}{here}; the system has {', '.join(identity.pythons) or 'none'}",
        "backends": f"{backends}{here}",
        "coder": "C kernel" if board.coder == "c" else "Python (slow: no C kernel was built)",
    }
    for measure in board.measures:
        facts[measure.what] = _measured(measure)
        for rail, why in measure.missing.items():
            facts[f"  {rail}"] = f"cannot be measured ({why})"
        if measure.fix:
            facts[f"{measure.what}: fix"] = measure.fix
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"{name:<{width}} {value}", soft_wrap=True, highlight=False, markup=False)
    for advice in board.advice:
        console.print(f"{'note':<{width}} {advice.what}: {advice.fix}", soft_wrap=True, highlight=False, markup=False)
    if sampled:
        _print_sampled(sampled)
    return 0


def _calibrate(args: argparse.Namespace, board: Board) -> int:
    import msgspec

    from narrowcast.devices.calibration import save_calibration
    from narrowcast.devices.calibration.graphs import graphs
    from narrowcast.devices.calibration.measure import calibrate
    from narrowcast.devices.calibration.power import power_meter

    if board.recorded:
        raise ConfigError(f"--calibrate measures this machine; --root {args.root} is a recorded one")
    meter = power_meter(args.target or board.target, meter=args.meter)
    chosen = list(graphs())
    with TerminalProgress(quiet=args.quiet).task("calibrating", len(chosen), "networks") as task:
        found = calibrate(
            board, threads=args.threads, seconds=args.seconds or 120.0, meter=meter, only=chosen, progress=task.advance
        )
    save_calibration(found, args.calibrate)
    if args.json:
        print_json({"file": str(args.calibrate), **msgspec.to_builtins(found)})
        return 0
    power = "not measured (`narrowcast probe` says why)"
    if found.power is not None:
        power = f"{found.power.idle_mw:.0f} mW idle, {found.power.busy_mw:.0f} mW busy: {found.power.scope}"
    for name, value in {
        "machine": f"{found}, {found.threads} thread{'s' * (found.threads > 1)}",
        "times": str(found.error),
        "power": power,
        "written": str(args.calibrate),
    }.items():
        stdout().print(f"{name:<9} {value}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _measured(measure: Measurable) -> str:
    if measure.now is None:
        return measure.by if measure.by and not measure.why_not else f"cannot be measured ({measure.why_not})"
    values = [f"{name} {value:.0f}" for name, value in list(measure.now.items())[:_MANY]]
    rest = f" and {len(measure.now) - _MANY} more" if len(measure.now) > _MANY else ""
    line = (", ".join(values) or "none") + rest
    line = f"{measure.by}: {line}" if measure.by else line
    if measure.why_not:
        return f"{line} ({measure.why_not})"
    return f"{line} (total: {measure.scope})" if measure.scope else line


def _record(args: argparse.Namespace) -> int:
    from narrowcast.devices.machine import open_machine
    from narrowcast.devices.record import record

    seconds = args.seconds or 30.0
    if not args.quiet:
        stderr().print(f"recording {seconds:.0f} s to {args.record}", soft_wrap=True)
    done = record(
        args.record,
        open_machine(args.root),
        seconds,
        hz=args.hz,
        meter=args.meter,
        architecture=args.architecture,
        target=args.target,
        source=_SOURCE,
    )
    if args.json:
        print_json({"file": str(args.record), **done._asdict()})
        return 0
    trouble = f", {done.failed} of them without power" if done.failed else ""
    stdout().print(f"{done.frames} looks at this board{trouble}, in {args.record}", soft_wrap=True)
    if done.why_no_power:
        stdout().print(f"its power is not in it: {done.why_no_power}", soft_wrap=True)
    return 0


def _sample(args: argparse.Namespace, board: Board) -> dict[str, Any]:
    from narrowcast.devices.errors import SensorError
    from narrowcast.devices.power.sampler import Sampler

    target = args.target or board.target  # a file's name of its own: the board's would be another's, or nobody's
    if target is None:
        raise SensorError("no target describes this board: its power cannot be sampled")
    sampler = Sampler(target, args.root, meter=args.meter, hz=args.hz)
    info = sampler.start()
    if not args.quiet:
        stderr().print(f"sampling {info.sensor} at {info.sample_hz:g} Hz for {args.sample:.0f} s", soft_wrap=True)
    try:
        sampler.wait(args.sample)
    finally:
        trace = sampler.stop()
    return _summary(info, trace)


def _summary(info: SamplerInfo, trace: Trace) -> dict[str, Any]:
    """Mean power of every rail over all samples, and what they cost; None with the reason where there is no figure."""
    from narrowcast.devices.power.trace import max_gap_s

    rails: dict[str, Any] = {}
    names = {rail: [rail] for rail in info.rails} | ({"total": info.total} if info.total else {})
    gap = max_gap_s(info.sample_hz)
    for name, parts in names.items():
        series = trace.series(parts, stall_s=info.stall_s) if trace.readings else None
        if series is None or len(series.times) < 2:
            rails[name] = {"mean_mw": None, "why_not": "less than two samples"}
            continue
        whole = series.integrate(float(series.times[0]), float(series.times[-1]), max_gap_s=gap)
        mean = None if whole.watts is None else 1000 * whole.watts
        rails[name] = {"mean_mw": mean, "why_not": whole.why_not, "largest_gap_s": whole.largest_gap_s}
    cost = trace.cost
    return {
        "sensor": info.sensor,
        "scope": info.scope,
        "sample_hz": info.sample_hz,
        "samples": len(trace.readings),
        "failed": len(trace.troubles),
        "first_failure": trace.troubles[0].message if trace.troubles else None,
        "late": cost.late,
        "dropped": cost.dropped,
        "sampler_cpu_s": cost.cpu_s,
        "sampler_cpu_percent": cost.cpu_percent,
        "rails": rails,
        "conditions": trace.conditions[-1][1].as_dict() if trace.conditions else None,
    }


def _print_sampled(data: dict[str, Any]) -> None:
    rows = [
        [name, "-" if row["mean_mw"] is None else f"{row['mean_mw']:.0f} mW", row["why_not"] or ""]
        for name, row in data["rails"].items()
    ]
    percent = data["sampler_cpu_percent"]
    cost = "not measurable" if percent is None else f"{percent:.2f} % of one core"
    note = (
        f"{data['samples']} samples at {data['sample_hz']:g} Hz, {data['failed']} failed, {data['late']} late, "
        f"{data['dropped']} dropped; the sampler took {cost}."
    )
    stdout().print()
    print_table("", ["rail", ">mean power", "why not"], rows, note=note)
    if data["first_failure"]:
        stdout().print(f"first failure: {data['first_failure']}", soft_wrap=True)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _targets(as_json: bool) -> int:
    import msgspec

    from narrowcast.devices.targets import load_target, target_names

    targets = [load_target(name) for name in target_names()]
    if as_json:
        print_json([msgspec.to_builtins(target) for target in targets])
        return 0
    rows = [
        [t.name, t.title, t.architecture, ", ".join(t.backends), ", ".join(t.precisions), t.power.sensor or "-"]
        for t in targets
    ]
    print_table("", ["target", "board", "architecture", "backends", "precisions", "power sensor"], rows)
    return 0
