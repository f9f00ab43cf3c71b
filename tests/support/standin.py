"""An environment for boards in tests that starts in milliseconds: what the agent asks of narrowcast's own, by plain Python.

It keeps the interface (``checks``, ``stream --check``, ``status.json``) and nothing else: where heads, signatures or frames
count, tests use the real environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

_COMMON = """#!{python} -IS
import base64, json, os, re, signal, sys, time, zipfile

def manifest(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("manifest.json"))

def signed_by(path):
    with zipfile.ZipFile(path) as archive:
        return base64.b64decode(json.loads(archive.read("manifest.sig"))["key"])[:8].hex()

def config(path):
    text = open(path).read()
    return {{key: value for key, value in re.findall(r'^(\\w+) = "(.*)"$', text, re.M)}}
"""

_PYTHON = """
words = sys.argv[1:]
if words[:3] == ["-I", "-m", "narrowcast.devices.flash.checks"]:
    word, model, keys = words[3:6]
    found = manifest(model)
    if word == "verify":
        signer = "" if keys == "unsigned" else signed_by(model)
        print(json.dumps({"name": found["name"], "release": found["release"], "signed_by": signer}))
    else:
        head = {"precision": "fp32", "backend": "standin", "head_ms": {}, "words": "standin", "power": None}
        print(json.dumps({"head": head, "selftest": {"passed": True, "words": "standin"}}))
elif "--check" in words:
    if "wrong" in config(words[words.index("--config") + 1]):
        sys.exit("narrowcast: unknown key 'wrong'")
else:
    sys.exit("no " + " ".join(words))
"""

# A daemon: ends at once where it sends to `broken`, is never answered where it sends to `nowhere`.
_DAEMON = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
settings = config(sys.argv[3])
if settings["to"].startswith("broken"):
    sys.exit("narrowcast: it is broken")
found, answered, told = manifest(settings["bundle"]), 0, 0
file = os.environ["RUNTIME_DIRECTORY"] + "/status.json"
while True:
    answers = not settings["to"].startswith("nowhere")
    answered += answers
    status = {
        "pid": os.getpid(), "model": {"name": found["name"], "release": found["release"]}, "ready": True,
        "ledger": {"captured": answered, "answered": answered, "dropped": {}}, "server": settings["to"] if answers else None,
    }
    try:
        with open(file + ".new", "w") as out:
            json.dump(status, out)
        os.replace(file + ".new", file)
    except OSError:
        pass  # as the daemon: a full disk ends nothing
    told += 1
    time.sleep(0.02 if told < 10 else 0.5)  # whoever waits for it has seen it: several of them idle while a test goes on
"""


def make(folder: Path) -> Path:
    """The environment, in ``folder``."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(parents=True)
    for name, body in (("python", _PYTHON), ("narrowcast", _DAEMON)):
        script = bin_folder / name
        script.write_text(_COMMON.format(python=sys.executable) + body)
        script.chmod(0o755)
    return folder
