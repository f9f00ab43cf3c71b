"""Whether the alphabet is large enough for what an encoder gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.errors import BottleneckError
from narrowcast.compiler.progress import Progress

# Shares of symbols at the alphabet's two ends, where values beyond them are clipped to. Densities put the ends far out: a
# well-trained encoder reaches them next to never.
TOLD = 0.001
REFUSED = 0.05


def check_alphabet(
    symbols: npt.NDArray[np.uint8], alphabet: int, progress: Progress, sent: Sequence[int] | None = None
) -> None:
    """Tells where, at some level, more than a thousandth of the symbols lie at the alphabet's ends.

    Only for presets with a learned density, whose alphabet is centred on 0: elsewhere the ends are values like any other.

    Args:
        symbols: ``[levels, N, C, h, w]``.
        alphabet: how many symbols there are.
        progress: is told.
        sent: by level, how many of the first channels hold anything; None: all.

    Raises:
        BottleneckError: at some level more than a twentieth are clipped.
    """
    used = [level[:, : symbols.shape[2] if sent is None else sent[k]] for k, level in enumerate(symbols)]
    clipped = [float(np.mean((level == 0) | (level == alphabet - 1))) if level.size else 0.0 for level in used]
    worst = int(np.argmax(clipped))
    said = (
        f"{100 * clipped[worst]:.2g} % of the symbols at level {worst} lie at the ends of the alphabet of {alphabet}, "
        "where larger values are clipped"
    )
    if clipped[worst] > REFUSED:
        raise BottleneckError(
            f"{said}: the latent is too large for it. Let a bit weigh more ([bottleneck] beta or rate_weights), train "
            "longer, or check [input] range, mean and std"
        )
    if clipped[worst] > TOLD:
        progress.note(f"{said}; a bit that weighs more would keep them within ([bottleneck] beta or rate_weights)")
