"""How training sees images: as they are, and where a recipe wants it mirrored left to right as well.

Numbers ``0 .. N - 1`` are the images, ``N .. 2N - 1`` the same ones mirrored. The teacher sees what the student sees, so
this needs no labels and takes no care of them: what a mirrored image is, the teacher says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Views:
    """Of ``images`` images, mirrored ones among them where ``flips``."""

    images: int
    flips: bool = False

    def __len__(self) -> int:
        return 2 * self.images if self.flips else self.images

    def image(self, rows: Rows) -> Rows:
        """The images that these views are of."""
        return rows % self.images

    def seen(self, rows: Rows, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The views ``rows`` of their images ``pictures``, uint8 ``[len(rows), H, W, 3]``."""
        mirrored = rows >= self.images
        if not mirrored.any():
            return np.ascontiguousarray(pictures)
        return np.where(mirrored[:, None, None, None], pictures[:, :, ::-1], pictures)

    def of_pass(self, order: Rows, number: int, seed: int) -> Rows:
        """The views of the images ``order`` in one pass over them: mirrored in every other pass, half of them at first."""
        if not self.flips:
            return order
        first = np.random.default_rng((seed, self.images)).integers(2, size=self.images)
        return order + self.images * ((first[order] + number) % 2)
