"""What each trick of `shallow-residual` is worth: the recipe as it is, and with one thing changed at a time.

    python bench/ablations.py examples/mobilenet_v2.toml --work .narrowcast --json ablations.json [--images 6000] [--rows N]

Every row sees as many images, in the same order. Bytes are compared with the first row's at equal agreement with the teacher
and at equal divergence of the answers (BD-rates, with 95 % intervals over the held-out images; the row with another order of
images says how much is chance). Rows that are in the file already, of as many images, are not trained again: stop it and
start it as you like.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trials import Changes, Measured, Trial, changed, keep, kept, rate_against

ROWS: dict[str, Changes] = {
    "as it is": {},
    "saliency": {"bottleneck": {"saliency": True}},
    "small crops first": {"bottleneck": {"first_crop": 0.5}},
    "tuned tail": {"bottleneck": {"tune_tail": True}},
    "levels balanced twice as much": {"bottleneck": {"level_balance": 0.5}},
    "48 channels": {"bottleneck": {"channels": 48}},
    "another order": {},
    "no deep features": {"bottleneck": {"deep_weight": 0.0}},
    "no output distillation": {"bottleneck": {"output_weight": 0.0}},
    "outputs weigh 4": {"bottleneck": {"output_weight": 4.0}},
    "outputs weigh 0.25": {"bottleneck": {"output_weight": 0.25}},
    "outputs weigh 0.25, rates chosen for that": {"bottleneck": {"output_weight": 0.25, "rate_weights": [0.4, 8.0]}},
    "outputs weigh 0.0625": {"bottleneck": {"output_weight": 0.0625}},
    "outputs weigh 1, the preset's rates": {"bottleneck": {"output_weight": 1.0, "rate_weights": [0.5, 16.0]}},
    "no first stage": {"bottleneck": {"first_stage": 0.0}},
    "random start": {"bottleneck": {"linear_start": False}},
    "bf16": {"train": {"precision": "bf16"}},
    "cut at features.12": {"cut": {"at": "features.12"}},
    "cut at features.8": {"cut": {"at": "features.8"}},
    "decoder twice as wide": {"bottleneck": {"decoder_width": 192}},
    "features at the cut alone": {"bottleneck": {"deep_weight": 0.0, "output_weight": 0.0}},
    "batches of 16": {"train": {"batch": 16}},
    "learning rate 2e-3": {"train": {"learning_rate": 2e-3}},
    "learning rate 4e-3": {"train": {"learning_rate": 4e-3}},
    "batches of 16 at 2e-3": {"train": {"batch": 16, "learning_rate": 2e-3}},
    "its own trunk": {"bottleneck": {"trunk": "new"}},
    "its own trunk, small crops first": {"bottleneck": {"trunk": "new", "first_crop": 0.5}},
    "channels found, from 128": {"bottleneck": {"channels": 128, "prune": True}},
    "flips": {"train": {"flips": True}},
    "features not cached": {"train": {"cache_gigabytes": 0.0}},
}


def run(recipe: Path, work: Path, images: int, name: str) -> dict[str, Any]:
    """One row's figures."""
    changes = {table: dict(keys) for table, keys in ROWS[name].items()}
    changes["train"] = {**changes.get("train", {}), "images": images}
    order = 1 if name == "another order" else None
    figures = Trial(changed(recipe, changes), work, order).figures
    return {"changes": ROWS[name], **figures}


def show(rows: dict[str, Any]) -> None:
    """The table, against the first row."""
    base = Measured(rows["as it is"])
    print(f"{'':28}{'bytes at equal agreement':>34}{'at equal divergence':>34}{'CPU ms an image':>18}")
    for name, figures in rows.items():
        row = Measured(figures)
        cells = []
        for by in ("agreed", "divergence"):
            rate, sure = rate_against(row, base, by)
            within = f" ({sure.low:+.1%}..{sure.high:+.1%})" if sure else ""
            cells.append("-" if rate is None else f"{rate:+.1%}{within}")
        print(f"{name:28}{cells[0]:>34}{cells[1]:>34}{figures['cpu_ms_per_image']:>18.1f}")
        levels = zip(*(row.means(key) for key in ("bytes", "agreed", "divergence")), strict=True)
        print("    " + "   ".join(f"{size:.0f} B {agreed:.1%} {apart:.3f}" for size, agreed, apart in levels))


def main() -> None:
    parser = argparse.ArgumentParser(description="One trick changed at a time, the same images seen.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".narrowcast"), help="where images and features are kept")
    parser.add_argument("--images", type=int, default=6000, metavar="N", help="shown to each row (default: 6000)")
    parser.add_argument("--rows", type=int, metavar="N", help="train at most N of the rows that are missing")
    parser.add_argument("--only", choices=ROWS, metavar="NAME", help="this row alone")
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="rows are kept there, with every image"
    )
    args = parser.parse_args()
    rows = kept(args.json, args.images)
    missing = [name for name in ROWS if name not in rows and args.only in (None, name)]
    for name in missing[: args.rows]:
        figures = run(args.recipe, args.work, args.images, name)
        rows[name] = figures
        keep(args.json, rows)
    if "as it is" in rows:
        show(rows)


if __name__ == "__main__":
    main()
