"""The rows that the benchmarks of training keep."""

from __future__ import annotations

import trials


def test_rows_of_another_number_of_images_are_measured_anew(tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert trials.kept(file, 100) == {}
    trials.keep(file, {"one": {"images": 100}, "two": {"images": 100}})
    assert set(trials.kept(file, 100)) == {"one", "two"}
    assert trials.kept(file, 200) == {}
    assert "2 rows saw another number of images than 200" in capsys.readouterr().out
    trials.keep(file, {"one": {"images": 200}})
    assert trials.kept(file, 200) == {"one": {"images": 200}}
    assert set(trials.kept(file, 100)) == {"two"}, "what is not replaced yet is not lost"
