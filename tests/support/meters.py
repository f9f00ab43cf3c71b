"""Meters of somebody's own, for tests."""

from __future__ import annotations


class Constant:
    """Always the same; the settings are its milliwatts."""

    rails = total = ["wall"]
    scope = "everything behind the plug"
    sample_hz = 5.0

    def __init__(self, settings: str) -> None:
        self.milliwatts = float(settings)

    def read(self) -> dict[str, float]:
        if self.milliwatts < 0:
            raise ConnectionError("the plug does not answer")
        return {"wall": self.milliwatts}


class Talkative(Constant):
    """Prints, as somebody's own code may."""

    def __init__(self, settings: str) -> None:
        print("opening", "." * 500, flush=True)
        super().__init__(settings)

    def read(self) -> dict[str, float]:
        print("reading", "." * 500, flush=True)
        return super().read()


class Wrong(Constant):
    """Answers something else than it says."""

    def read(self) -> dict[str, float]:
        return {"socket": 1.0}


class Nothing(Constant):
    """Its total is no rail of its own."""

    total = ["other"]
