"""How fast the range coder is, beside others, in one run: nanoseconds per symbol, and bytes.

    python bench/coder.py
    python bench/coder.py --rival-python /path/to/venv/bin/python --json coder.json
    python bench/coder.py --kernel _rans.so         the library out of a wheel, instead of this install's own

The frame is the latent of the Entropic Student: 24 x 55 x 55 symbols, at about one bit a symbol, with tables of its own
density. Coders take turns, round by round, so that a machine that drifts hits all alike; medians over rounds are quoted.

Rivals: constriction's range coder with the same probabilities, and CompressAI's C++ rANS where an environment with it is
given by --rival-python (it is not a dependency; only its ``ans`` extension is loaded, with its lists made beforehand).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from narrowcast.compiler.tables import fit_tables
from narrowcast.transport import coder
from narrowcast.transport.coder import Coder, native

SHAPE = (24, 55, 55)
ALPHABET = 64
CALLS = 5
RIVAL = Path(__file__).with_name("coder_rival.py")


def frame(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols uint8 [24, 55, 55] and their density float64 [24, 64]."""
    random = np.random.default_rng(seed)
    scales = random.uniform(0.15, 0.6, (SHAPE[0], 1))
    edges = np.clip((np.arange(ALPHABET + 1) - ALPHABET / 2 + random.normal(0, 0.2, (SHAPE[0], 1))) / scales, -40, 40)
    density = np.diff(1 / (1 + np.exp(-edges)), axis=1) + 1e-9
    density /= density.sum(1, keepdims=True)
    symbols = np.stack([random.choice(ALPHABET, SHAPE[1] * SHAPE[2], p=row) for row in density])
    return symbols.astype(np.uint8).reshape(SHAPE), density


def cross_entropy(bits: np.ndarray, symbols: np.ndarray) -> float:
    """Bytes that the symbols cost at ``bits`` [24, 64] each."""
    return float(np.take_along_axis(bits, symbols.reshape(SHAPE[0], -1).astype(int), 1).sum()) / 8


def timed(call: Callable[[], object]) -> float:
    """Nanoseconds per symbol: the median of a few calls in a row, so that nobody pays for the caches of the one before."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return median(times) / np.prod(SHAPE)


class Narrowcast:
    """This project's coder."""

    def __init__(self, symbols: np.ndarray, density: np.ndarray, lanes: int) -> None:
        self.name = f"narrowcast, {lanes} lane{'s' if lanes > 1 else ''}"
        self.coder, self.symbols = Coder(fit_tables(density[None], None, lanes=lanes), "c"), symbols
        self.ideal = cross_entropy(self.coder.tables.bits()[0], symbols)
        self.payload = self.coder.encode(symbols, 0)
        assert np.array_equal(self.coder.decode(self.payload, 0, SHAPE), symbols)

    def round(self) -> tuple[float, float]:
        """One encode and one decode."""
        return (
            timed(lambda: self.coder.encode(self.symbols, 0)),
            timed(lambda: self.coder.decode(self.payload, 0, SHAPE)),
        )

    @property
    def size(self) -> int:
        """Bytes of the frame."""
        return len(self.payload)


class Constriction:
    """constriction's range coder; one call per channel, as its interface wants it."""

    name = "constriction"

    def __init__(self, symbols: np.ndarray, density: np.ndarray) -> None:
        import constriction

        self.queue = constriction.stream.queue
        self.rows = symbols.reshape(SHAPE[0], -1).astype(np.int32)
        self.models = [constriction.stream.model.Categorical(row, perfect=False) for row in density]
        self.payload = self.encode()
        assert np.array_equal(np.stack(self.decode()), self.rows)

    def encode(self) -> np.ndarray:
        encoder = self.queue.RangeEncoder()
        for row, model in zip(self.rows, self.models, strict=True):
            encoder.encode(row, model)
        return encoder.get_compressed()

    def decode(self) -> list[np.ndarray]:
        decoder = self.queue.RangeDecoder(self.payload)
        return [decoder.decode(model, self.rows.shape[1]) for model in self.models]

    def round(self) -> tuple[float, float]:
        return timed(self.encode), timed(self.decode)

    @property
    def size(self) -> int:
        return int(self.payload.nbytes)


class Other:
    """CompressAI's coder in an environment of its own, one round at a time."""

    name = "CompressAI rANS"

    def __init__(self, python: str, symbols: np.ndarray, density: np.ndarray) -> None:
        self.process = subprocess.Popen([python, str(RIVAL)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        job = {"symbols": symbols.reshape(SHAPE[0], -1).tolist(), "density": density.tolist()}
        self.size = int(self._ask(json.dumps(job))["bytes"])

    def _ask(self, line: str) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the rival's environment does not run; it needs CompressAI and NumPy")
        found: dict[str, float] = json.loads(answer)
        return found

    def round(self) -> tuple[float, float]:
        answer = self._ask("go")
        return answer["encode_ns"], answer["decode_ns"]


def use_kernel(file: Path) -> None:
    """Codes with this library from now on."""
    library = native.load(file.resolve())
    if library is None:
        raise SystemExit(f"{file} is no C kernel for this machine")
    coder.load = lambda: library


def main() -> None:
    parser = argparse.ArgumentParser(description="The range coder beside others: nanoseconds per symbol, and bytes.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--rival-python", metavar="PYTHON", help="of an environment that has CompressAI")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="time this library of the C kernel")
    args = parser.parse_args()
    if args.kernel:
        use_kernel(args.kernel)
    symbols, density = frame()
    coders: list[Narrowcast | Constriction | Other] = [Narrowcast(symbols, density, lanes) for lanes in (4, 2, 1)]
    try:
        coders.append(Constriction(symbols, density))
    except ImportError:
        print("constriction is not installed here")
    if args.rival_python:
        coders.append(Other(args.rival_python, symbols, density))
    rounds: dict[str, list[tuple[float, float]]] = {one.name: [] for one in coders}
    for number in range(args.rounds + 3):
        for one in coders:
            found = one.round()
            if number >= 3:  # the first ones warm the caches
                rounds[one.name].append(found)
    report(coders, rounds, cross_entropy(-np.log2(density), symbols), args.json)


def report(coders: list, rounds: dict[str, list[tuple[float, float]]], ideal: float, file: Path | None) -> None:
    """Prints the table and writes the JSON."""
    bits = 8 * ideal / np.prod(SHAPE)
    print(f"{'x'.join(map(str, SHAPE))} symbols at {bits:.2f} bit; under the unquantized density {ideal:.1f} bytes.")
    print(
        "Overhead: bytes beyond the cross-entropy under the coder's own tables; 'density', under the unquantized one.\n"
    )
    print(f"{'':<22}{'encode':>12}{'decode':>12}{'bytes':>9}{'overhead':>12}{'density':>11}{'encode':>10}{'decode':>9}")
    results, first = [], None
    for one in coders:
        encode, decode = (median(values) for values in zip(*rounds[one.name], strict=True))
        first = first or (encode, decode)
        own = f"{one.size - one.ideal:+.1f} B" if isinstance(one, Narrowcast) else "-"
        print(
            f"{one.name:<22}{encode:>9.2f} ns{decode:>9.2f} ns{one.size:>9}{own:>12}{one.size - ideal:>+9.1f} B"
            f"{encode / first[0]:>9.1f}x{decode / first[1]:>8.1f}x"
        )
        results.append(
            {
                "coder": one.name,
                "encode_ns": encode,
                "decode_ns": decode,
                "bytes": one.size,
                "over_tables_bytes": one.size - one.ideal if isinstance(one, Narrowcast) else None,
                "over_density_bytes": one.size - ideal,
                "rounds": len(rounds[one.name]),
            }
        )
    if file:
        document = {"shape": SHAPE, "ideal_bytes": ideal, "bits_per_symbol": bits, "coders": results}
        file.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
