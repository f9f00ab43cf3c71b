"""The exporter's library is parsed once a process, not once a network."""

from __future__ import annotations

import torch
from support import networks

from narrowcast.compiler.export import export_network
from narrowcast.compiler.exporter_library import parse_once


def test_no_function_is_parsed_twice(monkeypatch):
    images = torch.zeros(1, 3, 32, 32)
    first = export_network(networks.tiny(), images, ["output"])
    assert parse_once(), "this version of onnxscript gives descriptions in another way: does it still parse every time?"
    from onnxscript._internal import ast_utils

    parsed = []
    original = ast_utils.get_src_and_ast
    monkeypatch.setattr(ast_utils, "get_src_and_ast", lambda function: parsed.append(function) or original(function))
    assert export_network(networks.tiny(), images, ["output"]) == first
    assert not parsed
