"""Ray Serve with the tail server's application, on this machine alone: a JSON line when it is there, until stdin ends.

Run as a process of its own: ``python ray_app.py CONFIG.json`` with the application's args, ``http`` and ``grpc`` ports, and
a folder for Ray's own files.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import ray
from ray import serve
from ray.serve._private import api, client
from ray.serve.config import HTTPOptions, gRPCOptions

from narrowcast.tail.ray_serve import app

LIFE_SECONDS = 560  # on a busy machine Ray alone takes minutes to start
api.HTTP_PROXY_TIMEOUT = client.HTTP_PROXY_TIMEOUT = LIFE_SECONDS  # a minute, and no setting of Ray's changes it


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    limit = threading.Timer(LIFE_SECONDS, os._exit, [1])  # whoever waits for a line is not to wait for ever
    limit.daemon = True
    limit.start()
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=config["temp"])
    services = [f"narrowcast.tail.ray_serve:{name}" for name in ("add_tail", "add_inference", "add_health_check")]
    serve.start(
        http_options=HTTPOptions(port=config["http"]),
        grpc_options=gRPCOptions(port=config["grpc"], grpc_servicer_functions=services),
    )
    serve.run(app(config["args"]), name="tail")
    print(json.dumps({"event": "listening"}), flush=True)
    for line in sys.stdin:
        if line.strip() == "status":
            status = serve.status().applications["tail"].deployments["tail"]
            print(json.dumps({"replicas": status.replica_states}), flush=True)
    ray.shutdown()  # takes all of it along; serve.shutdown() would wait for half a minute


if __name__ == "__main__":
    main()
