"""Whether a calibration predicts heads: times of this machine, predicted from its own calibration and measured.

    python bench/calibration.py                            calibrates, makes the heads (minutes, once), compares
    python bench/calibration.py --calibration mine.json    with a calibration that is there
    python bench/calibration.py --json calibration.json

The heads are timm networks cut at several places behind the presets' encoders, fp32 and INT8, exported as for bundles. None
of them is among the networks of a calibration. Heads that are one network to ONNX Runtime (the same operators on the same
shapes) count once.

Both times are of one thread. What is compared with is the least time of the processor over the runs: on a machine with
nothing else to do that is the time that passes, and on a busy one it still is what the head takes. The least time that
passed is in the table too. The exit code is 0 where the median error is at most 15 % over at least 20 heads.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from calibration_heads import heads

from narrowcast.cli.show import TerminalProgress
from narrowcast.devices.calibration import Calibration, load_calibration, save_calibration
from narrowcast.devices.calibration.graphs import graphs
from narrowcast.devices.calibration.measure import calibrate
from narrowcast.devices.calibration.operations import operation
from narrowcast.devices.probe import probe
from narrowcast.head.backends.profiling import profile

WANTED = 0.15
LEAST_HEADS = 20
RUNS = 15


def compare(calibration: Calibration, folder: Path, progress: TerminalProgress) -> list[dict[str, Any]]:
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, model in heads(folder):
        found = profile(model, runs=RUNS)
        operations = [operation(node.op, node.inputs, node.outputs) for node in found.nodes]
        predicted = calibration.predict(operations)
        row = {
            "head": name,
            "measured_ms": round(found.cpu_ms, 3),
            "passed_ms": round(found.ms, 3),
            "predicted_ms": round(predicted.ms, 3),
            "error": round(predicted.ms / found.cpu_ms - 1, 4),
            "unknown": list(predicted.unknown),
        }
        if rows.setdefault(tuple(sorted(operations)), row) is row:
            progress.note(
                f"{name:<70} {row['measured_ms']:8.2f} ms, told {row['predicted_ms']:8.2f}: {100 * row['error']:+5.0f} %"
            )
    return list(rows.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, help="of this machine; made if it is missing")
    parser.add_argument("--work", type=Path, default=Path(".narrowcast/calibration"), help="where heads are kept")
    parser.add_argument("--seconds", type=float, default=120.0, help="for calibrating")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    progress = TerminalProgress()
    file = args.calibration or args.work / "calibration.json"
    if not file.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        chosen = list(graphs())
        with progress.task("calibrating", len(chosen), "networks") as task:
            save_calibration(calibrate(probe(), seconds=args.seconds, only=chosen, progress=task.advance), file)
    calibration = load_calibration(file)
    rows = compare(calibration, args.work, progress)
    errors = np.abs([row["error"] for row in rows])
    found = {
        "machine": str(calibration),
        "stated_error": {"median": calibration.error.median, "p90": calibration.error.p90},
        "heads": len(rows),
        "median_error": round(float(np.median(errors)), 4),
        "p90_error": round(float(np.percentile(errors, 90)), 4),
        "rows": rows,
    }
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{len(rows)} heads: off by {100 * found['median_error']:.1f} % in the middle, {100 * found['p90_error']:.0f} % in "
        f"nine of ten; the calibration says: {calibration.error}"
    )
    return 0 if found["median_error"] <= WANTED and len(rows) >= LEAST_HEADS else 1


if __name__ == "__main__":
    sys.exit(main())
