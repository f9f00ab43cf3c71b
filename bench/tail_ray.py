"""Ray Serve with the tail server's application for ``bench/tail.py``, until stdin ends; one JSON line once it listens.

Run as ``python tail_ray.py BUNDLES FOLDER HTTP_PORT GRPC_PORT REPLICAS THREADS``; ``FOLDER`` is for Ray's own files.
"""

from __future__ import annotations

import json
import os
import sys

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from narrowcast.tail.ray_serve import app


def main() -> None:
    bundles, folder, http, grpc, replicas, threads = sys.argv[1:]
    # The count of cores is what Ray's planner goes by; nothing is bound to a core. Controller and proxy take places too.
    cores = len(os.sched_getaffinity(0))
    ray.init("local", num_cpus=cores + int(replicas), include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    services = [f"narrowcast.tail.ray_serve:{name}" for name in ("add_tail", "add_inference", "add_health_check")]
    serve.start(
        http_options=HTTPOptions(port=int(http)),
        grpc_options=gRPCOptions(port=int(grpc), grpc_servicer_functions=services),
    )
    settings = {
        "bundles": bundles,
        "insecure": True,
        "allow_unsigned": True,
        "threads": int(threads),
        "min_replicas": int(replicas),
        "max_replicas": int(replicas),
        "stream_age_s": 3600.0,  # no stream moves while it is measured
    }
    serve.run(app(settings), name="tail")
    print(json.dumps({"port": int(grpc)}), flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
