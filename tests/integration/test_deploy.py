"""``deploy/``: the manifests against Kubernetes' schemas, the unit by systemd's own tools, the image's commands."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from narrowcast.cli import serve
from narrowcast.head.daemon.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = ["1.32", "1.34", "1.37"]


@pytest.fixture(scope="module")
def manifests():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (it comes with narrowcast[dev])")
    found = {}
    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        assert document["kind"] not in found
        found[document["kind"]] = document
    return found


def served_with(arguments):
    """The server's settings, by the real command line."""
    assert arguments[0] == "serve"
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    return parser.parse_args(arguments[1:])


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_manifest_fits_kubernetes_schema(manifests, version):
    checker = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (narrowcast[dev])"
    )
    for manifest in manifests.values():
        checker.validate(manifest, version, strict=True)
    wrong = json.loads(json.dumps(manifests["Deployment"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readnessProbe"] = {}
    with pytest.raises(checker.ValidationError):
        checker.validate(wrong, version, strict=True)


def test_the_manifests_belong_together(manifests):
    deployment, name = manifests["Deployment"], "narrowcast-tail"
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == manifests["Service"]["spec"]["selector"]
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["clusterIP"] == "None"
    assert (
        manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"] == name
    )
    assert "replicas" not in deployment["spec"]  # the autoscaler's
    assert pod["spec"]["serviceAccountName"] == manifests["ServiceAccount"]["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert (
        volumes["models"]["persistentVolumeClaim"]["claimName"]
        == (manifests["PersistentVolumeClaim"]["metadata"]["name"])
    )
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"] for port in manifests["Service"]["spec"]["ports"]} == set(ports)
    used = [container[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    used += [port["port"] for rule in manifests["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]]
    assert set(used) == set(ports)


def test_the_pod_serves_with_settings_that_there_are(manifests):
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    args = served_with(container["args"])
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (args.bundles, args.trust, args.tls):
        assert any(path.is_relative_to(mount) for mount in mounts), path
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (args.listen, args.http) == (f"0.0.0.0:{ports['grpc']}", f"0.0.0.0:{ports['http']}")
    assert pod["terminationGracePeriodSeconds"] > args.drain_timeout


def test_the_pod_may_do_little(manifests):
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert all(mount.get("readOnly") for mount in container["volumeMounts"] if mount["name"] != "tmp")
    assert not manifests["NetworkPolicy"]["spec"].get("egress")


def test_the_autoscaler_goes_by_a_metric_that_the_server_has(manifests):
    yaml = pytest.importorskip("yaml")
    (metric,) = manifests["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series = re.match(r"\w+", rule["seriesQuery"])[0]
    assert re.fullmatch(rule["name"]["matches"], series)
    exposed = subprocess.run(
        ["grep", "-rlE", f'{series}|{series.removesuffix("_total")}"', ROOT / "tail"], capture_output=True, check=False
    )
    assert exposed.returncode == 0, f"nothing in tail/ gives {series}"


def _systemd_analyze():
    tool = shutil.which("systemd-analyze")
    return tool or pytest.skip("systemd-analyze is not installed (Debian: systemd)")


PROGRAMS = {
    "narrowcast-tail.service": "/opt/narrowcast/bin/narrowcast",
    "narrowcast-edge.service": "/opt/narrowcast/current/venv/bin/narrowcast",
}


@pytest.fixture(params=PROGRAMS)
def unit(request, tmp_path):
    """A unit with a program in the place of the one that would be installed."""
    text = (DEPLOY / request.param).read_text()
    program = tmp_path / "narrowcast"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / request.param
    unit.write_text(text.replace(PROGRAMS[request.param], str(program)))
    return unit


def test_systemd_takes_the_unit(unit):
    done = subprocess.run([_systemd_analyze(), "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_may_do_little(unit):
    command = [_systemd_analyze(), "security", "--offline=true", "--json=short", "--threshold=30", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # exposure 3.0 at most


def test_the_edge_unit_fits_its_settings_and_its_user():
    text = (DEPLOY / "narrowcast-edge.service").read_text()
    said = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert shlex.split(said["ExecStart"])[1:] == ["stream", "--config", "/etc/narrowcast/edge.toml"]
    config = load_config(DEPLOY / "edge.toml")
    assert config.drain_seconds * 2 + 15 < float(said["TimeoutStopSec"])  # what the daemon gives itself
    assert said["Type"] == "notify"
    assert float(said["WatchdogSec"]) >= 10
    assert (said["User"], said["StateDirectory"], said["RuntimeDirectory"]) == ("narrowcast",) * 3
    tool = shutil.which("systemd-sysusers")
    if tool is None:
        pytest.skip("systemd-sysusers is not installed (Debian: systemd)")
    command = [tool, "--dry-run", "--root=/nonexistent", str(DEPLOY / "narrowcast-edge.sysusers.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for group in ("video", "i2c"):
        assert f"m narrowcast {group}" in (DEPLOY / "narrowcast-edge.sysusers.conf").read_text()


def test_the_unit_serves_with_settings_that_there_are():
    text = (DEPLOY / "narrowcast-tail.service").read_text().replace("\\\n", " ")
    command = shlex.split(re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1])
    args = served_with(command[1:])
    assert args.drain_timeout < float(re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[1])
    assert args.tls is not None
    assert args.http.startswith("127.0.0.1:")


def _dockerfile():
    """The instructions: (name, text), lines joined."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def test_the_dockerfile_passes_its_linter():
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed (narrowcast[dev])")
    done = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_serves_with_settings_that_there_are():
    instructions = dict(_dockerfile())
    assert json.loads(instructions["ENTRYPOINT"]) == ["narrowcast"]
    args = served_with(json.loads(instructions["CMD"]))
    assert args.http in re.search(r"http://(\S+?)/readyz", instructions["HEALTHCHECK"])[0]
    assert instructions["USER"] == "10001:10001"


def test_the_images_commands_work_in_a_clean_environment(tmp_path):
    context, opt, libraries = tmp_path / "source", tmp_path / "opt", tmp_path / "libraries"
    context.mkdir()
    wanted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    ignored = ["*.so", "__pycache__"]
    assert {f"**/{name}" for name in ignored} <= set((ROOT / ".dockerignore").read_text().splitlines())
    for name in wanted:  # what docker would send
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, symlinks=True, ignore=shutil.ignore_patterns(*ignored))
        else:
            shutil.copy2(source, context / name)
    # The libraries are those of the tests: bringing them again would take minutes. narrowcast itself is not among them.
    libraries.mkdir()
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if not any(fnmatch.fnmatch(entry.name, name) for name in ("*narrowcast*", "pip*", "setuptools*", "*.pth")):
            (libraries / entry.name).symlink_to(entry)
    environment = {**os.environ, "PIP_NO_DEPS": "1", "PYTHONPATH": str(libraries), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    places, folder, ran = {"/source": context, "/": tmp_path}, tmp_path, 0
    for name, text in _dockerfile():
        if name == "WORKDIR":
            folder = places[text]
        if name != "RUN" or "apt-get" in text or "useradd" in text:  # these two would change the machine
            continue
        command = text.replace("/opt/narrowcast", str(opt)).replace("python3 -m venv", f"{sys.executable} -m venv")
        done = subprocess.run(
            ["sh", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        ran += 1
    assert ran == 2
    done = subprocess.run(
        [opt / "bin" / "narrowcast", "serve", "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--bundles" in done.stdout
