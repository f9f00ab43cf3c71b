"""Triton's own client beside a tail server; prints one JSON object with what it saw.

Run as a process of its own, ``python triton_client.py HOST:PORT FRAMES.npz``: its messages have the names of ours, and one
process cannot hold both.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def inputs_of(symbols, levels):
    inputs = [triton.InferInput("symbols", symbols.shape, "UINT8"), triton.InferInput("level", levels.shape, "INT64")]
    for tensor, array in zip(inputs, (symbols, levels), strict=True):
        tensor.set_data_from_numpy(array)
    return inputs


def refused(call) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["answered", ""]


def asynchronous(client, symbols, levels) -> list:
    import queue

    done: queue.Queue = queue.Queue()
    for k in range(4):
        client.async_infer(
            "tiny",
            inputs_of(symbols, levels),
            request_id=str(k),
            callback=lambda result, error: done.put((result, error)),
        )
    answers = [done.get(timeout=30) for _ in range(4)]
    assert not any(error for _, error in answers), answers
    return sorted([result.get_response().id, result.as_numpy("output").tolist()] for result, _ in answers)


def main() -> None:
    address, frames = sys.argv[1], np.load(sys.argv[2])
    symbols, levels = frames["symbols"], frames["levels"]
    with triton.InferenceServerClient(address) as client:
        metadata = client.get_model_metadata("tiny", as_json=True)
        answer = client.infer("tiny", inputs_of(symbols, levels), model_version="1", request_id="7", timeout=30_000_000)
        print(
            json.dumps(
                {
                    "live": client.is_server_live(),
                    "ready": client.is_server_ready(),
                    "model": client.is_model_ready("tiny"),
                    "version": client.is_model_ready("tiny", "2"),
                    "other": client.is_model_ready("other"),
                    "server": client.get_server_metadata(as_json=True)["name"],
                    "inputs": metadata["inputs"],
                    "outputs": metadata["outputs"],
                    "id": answer.get_response().id,
                    "answer": answer.as_numpy("output").tolist(),
                    "several": asynchronous(client, symbols, levels),
                    "unknown": refused(lambda: client.infer("other", inputs_of(symbols, levels))),
                    "alphabet": refused(lambda: client.infer("tiny", inputs_of(symbols + np.uint8(128), levels))),
                    "late": refused(lambda: client.infer("tiny", inputs_of(symbols, levels), timeout=1)),
                }
            )
        )


if __name__ == "__main__":
    main()
