"""Ray Serve with the tail server's application, on this machine alone: one JSON line when it is there, until stdin ends.

Run as a process of its own: ``python ray_app.py CONFIG.json`` with the application's args, and ``http`` and ``grpc`` ports.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from narrowcast.tail.ray_serve import app


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
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
            print(json.dumps({"replicas": status.replica_states, "target": status.target_num_replicas}), flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
