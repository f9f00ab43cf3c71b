"""What a network's outputs mean, and what is made of them outside its graph (``docs/tasks.md``).

A recipe's ``[task]`` says whether outputs are class scores, dense maps of boxes, or a map of classes. It is frozen in the
bundle, and one implementation (NumPy alone) makes answers of outputs wherever that is done: on the server before they are
sent back, on the device, in an evaluation.
"""

from __future__ import annotations

from narrowcast.transport.tasks.answers import (
    MAIN,
    Answer,
    Detections,
    Segmentation,
    answer_of,
    finish,
    sent_outputs,
)
from narrowcast.transport.tasks.settings import ClassifyTask, DetectTask, SegmentTask, Task, check_outputs

__all__ = [
    "MAIN",
    "Answer",
    "ClassifyTask",
    "DetectTask",
    "Detections",
    "SegmentTask",
    "Segmentation",
    "Task",
    "answer_of",
    "check_outputs",
    "finish",
    "sent_outputs",
]
