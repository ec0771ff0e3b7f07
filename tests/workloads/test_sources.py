"""Files of a workload: found in a folder of folders, in their own folder, or not at all."""

import gzip

import pytest

from workloads.base import DataSource
from workloads.data import DataError
from workloads.sources import Files, NoFiles, find_files, joined, need_at_least, need_one_of, sample_source


@pytest.fixture(autouse=True)
def nobody_says_where(monkeypatch):
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


def test_files_are_found_packed_or_not_by_their_first_name(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text("1")
    (tmp_path / "set" / "old.json.gz").write_bytes(gzip.compress(b"2"))
    for given in (tmp_path, tmp_path / "set"):
        found = find_files("set", str(given), ["a.jsonl", "new.json"], ["c"], also={"new.json": ["old.json"]})
        assert isinstance(found, Files)
        assert (found.contents["a.jsonl"], gzip.decompress(found.contents["new.json"])) == (b"1", b"2")
        assert found.source.origin == "files"
        assert "c" not in found.contents


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no a\.jsonl or a\.jsonl\.gz in .*; it needs a\.jsonl"):
        find_files("set", str(tmp_path), ["a.jsonl"])


def test_without_a_folder_there_is_a_reason(monkeypatch, tmp_path):
    assert find_files("set", None, ["a"]) == NoFiles("")
    monkeypatch.setenv("RADIXLAB_DATA", str(tmp_path))
    found = find_files("set", None, ["a"])
    assert isinstance(found, NoFiles)
    assert "has no folder set/" in found.why


def test_sources_join_into_one():
    files, sample = DataSource("files", "/a", "1"), sample_source("MySet", [1, {"b": 2}], "no files")
    assert "not MySet (no files)" in sample.note
    both = joined(files, sample)
    assert (both.origin, both.path) == ("sample", "/a")
    assert both.sha256 not in (files.sha256, sample.sha256)
    assert joined(files, files).origin == "files"


def test_parameters_out_of_range_are_named():
    need_at_least(n=(None, 1), m=(1, 1))
    with pytest.raises(ValueError, match="k=0 is not allowed: it must be a whole number, 1 or more"):
        need_at_least(k=(0, 1))
    with pytest.raises(ValueError, match="mode='c' is not allowed: it must be one of a, b"):
        need_one_of("mode", "c", ["a", "b"])
