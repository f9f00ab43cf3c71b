"""The application for Ray Serve: its settings, and how many replicas there are to be."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="ray is not installed (pip install 'narrowcast[ray]')")

import yaml
from ray.serve.config import AutoscalingContext
from ray.serve.schema import ServeDeploySchema
from support import bundles

from narrowcast.tail.errors import ListenError
from narrowcast.tail.ray_serve import RATE, FrameRatePolicy, Replica, ReplicaSettings, app
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.rpc import tail_pb2 as pb

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ({}, ConfigError, "missing required field `bundles`"),
        ({"bundles": "/m", "insecure": True, "max_replica": 3}, ConfigError, "did you mean 'max_replicas'"),
        ({"bundles": "/m", "insecure": True, "max_batch": 0}, ConfigError, "max_batch"),
        ({"bundles": "/m", "insecure": True, "look_back_s": 5.0}, ConfigError, "look_back_s"),
        ({"bundles": "/m", "insecure": True, "min_replicas": 5}, ConfigError, "5 replicas at least, and 4 at most"),
        ({"bundles": "models", "insecure": True}, ConfigError, "another folder in every process"),
        ({"bundles": "/m"}, ListenError, "neither encrypted nor authenticated"),
    ],
)
def test_settings_that_cannot_be(args, error, message):
    with pytest.raises(error, match=message):
        app(args)


def test_the_file_in_deploy_is_one_for_ray_serve():
    schema = ServeDeploySchema.model_validate(yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text()))
    (application,) = schema.applications
    assert application.import_path == "narrowcast.tail.ray_serve:app"
    deployment = app(application.args)._bound_deployment
    config = deployment._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (2, 8)
    assert config.max_ongoing_requests == 256 + 64
    # A replica that is to go is empty before it must be: its streams have moved.
    assert config.graceful_shutdown_timeout_s > 60 * 1.1 + 20
    for path in schema.grpc_options.grpc_servicer_functions:
        module, name = path.split(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))


async def test_a_replica_serves_codecs_side_by_side(tmp_path):
    bundles.make("a", 1).write(tmp_path / "a1.ncb", key=None)
    bundles.with_codec(bundles.make("a", 2), 1).write(tmp_path / "a2.ncb", key=None)
    for keep, releases in ((None, [1, 2]), (1, [2])):
        replica = Replica.__new__(Replica)
        await replica.__init__(ReplicaSettings(str(tmp_path), allow_unsigned=True, keep=keep))
        listed = await replica.ListModels(pb.ListModelsRequest(), Caller())
        assert sorted(model.release for model in listed.models) == releases
        for slot in replica._table:
            await slot.batcher.close()


class Caller:
    """What Ray Serve tells of a call."""

    def peer(self):
        return "ipv4:192.0.2.7:5000"


def context(rates, streams=0):
    return AutoscalingContext(
        deployment_id=None, deployment_name="tail", app_name="tail", current_num_replicas=len(rates),
        target_num_replicas=len(rates), running_replicas=[], total_num_requests=streams, total_queued_requests=0,
        aggregated_metrics={RATE: dict(enumerate(rates))}, raw_metrics=None, capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=9, policy_state={}, last_scale_up_time=None, last_scale_down_time=None,
        current_time=None, config=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "streams", "replicas"),
    [([], 0, 1), ([0.0, 0.0], 3, 1), ([99.0], 1, 1), ([101.0], 1, 2), ([250.0, 100.0], 9, 4), ([10.0, 10.0], 130, 3)],
)
def test_replicas_by_frames_and_by_streams(rates, streams, replicas):
    assert FrameRatePolicy(frames_per_second=100.0, max_streams=64)(context(rates, streams)) == (replicas, {})
