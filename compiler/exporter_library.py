"""The exporter's library of operators, parsed once a process.

``torch.onnx.export`` asks each of its 500 functions for a description every time it is called, and the library parses the
function's source anew to give it: a second and more, half of what exporting a head takes. A plan exports dozens of networks.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def parse_once() -> bool:
    """From now on; returns whether this version of the library is one that this helps with. Nothing else changes."""
    try:
        from onnxscript._internal.values import TracedOnnxFunction
    except ImportError:
        return False
    parse = vars(TracedOnnxFunction).get("function_ir")
    if not isinstance(parse, property) or parse.fget is None:
        return False
    read = parse.fget
    known: dict[Any, Any] = {}  # the functions are the library's, and live as long as it

    def parsed(function: Any) -> Any:
        if function not in known:
            known[function] = read(function)
        return known[function]

    setattr(TracedOnnxFunction, "function_ir", property(parsed))  # noqa: B010  (a property, which types take for a method)
    return True
