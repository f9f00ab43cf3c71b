"""``narrowcast deploy --dry-run`` changes nothing, on this machine either."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import narrowcast.deploy
from narrowcast.cli import main


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_dry_run_makes_no_signing_key(monkeypatch, tmp_path, capsys, dry_run):
    keys, given = Path(os.environ["NARROWCAST_KEYS"]), []

    def deploy(recipe, options, observer):
        given.append(options)
        return narrowcast.deploy.Deployment(bundle="r.ncb", stages=[], model=None, release=None)

    monkeypatch.setattr(narrowcast.deploy, "deploy", deploy)
    (tmp_path / "r.toml").write_text('[deploy.fleet]\ninventory = "fleet.toml"\n')
    assert main(["deploy", str(tmp_path / "r.toml"), "--dry-run" if dry_run else "--yes"]) == 0
    said = capsys.readouterr().err
    assert given[0].key is not None  # so the plan is that of a key which has signed nothing yet
    assert given[0].dry_run is dry_run
    made = [(keys / name).exists() for name in ("signing.key", "trusted/signing.pub")]
    assert made == [not dry_run] * 2
    assert f"{'would make' if dry_run else 'made'} a signing key: {keys / 'signing.key'}" in said
