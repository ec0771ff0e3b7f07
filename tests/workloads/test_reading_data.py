"""Finding and reading data: what is given counts, what is broken is named, the hub never stalls."""

import gzip
import io
import json
import socket
import sys
import tarfile
import types

import pytest

from workloads import data
from workloads.data import DataError, csv_rows, data_folder, digest, from_hub, hub_silence, jsonl_rows, tar_members

FIELDS = {"name": str, "size": int}
GOOD = b'{"name": "a", "size": 1}\n\n{"name": "b", "size": 2}\n'


def rows(content, name="x.jsonl"):
    return [row for _, row in jsonl_rows(name, content, FIELDS)]


def test_gzip_and_plain_are_read_alike():
    assert (
        rows(GOOD)
        == rows(gzip.compress(GOOD, mtime=0), "x.jsonl.gz")
        == [{"name": "a", "size": 1}, {"name": "b", "size": 2}]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b'{"name": "c", "size"', r"x.jsonl, line 4: not JSON"),
        (GOOD + b"[1, 2]", r"x.jsonl, line 4: a JSON object with name, size is needed, not list"),
        (b'{"name": "a"}', r"x.jsonl, line 1: no field 'size'; its fields: name"),
        (b'{"name": "a", "size": "1"}', r"x.jsonl, line 1: field 'size' is str, int is needed"),
        (b'{"name": "a", "size": true}', r"x.jsonl, line 1: field 'size' is bool, int is needed"),
        (GOOD + b"\xff\xfe", r"x.jsonl, line 4: not UTF-8"),
        (gzip.compress(GOOD, mtime=0)[:-12], r"x.jsonl: truncated or corrupt gzip"),
        (
            gzip.compress(GOOD, mtime=0)[:12] + b"damage" + gzip.compress(GOOD, mtime=0)[18:],
            r"x.jsonl: truncated or corrupt gzip",
        ),
    ],
)
def test_a_broken_line_or_file_is_named(content, message):
    with pytest.raises(DataError, match=message):
        rows(content)


def test_a_gz_file_that_is_no_gzip_is_named():
    with pytest.raises(DataError, match=r"x.jsonl.gz: truncated or corrupt gzip"):
        rows(GOOD, "x.jsonl.gz")


def test_csv_keeps_commas_quotes_and_line_breaks():
    content = b'"a, ""b""","c\nd",e\nf,g,h\n'
    assert list(csv_rows("x.csv", content, 3)) == [
        ("x.csv, line 2", ['a, "b"', "c\nd", "e"]),
        ("x.csv, line 3", ["f", "g", "h"]),
    ]


@pytest.mark.parametrize("content", [b"a,b,c\nd,e\n", b'a,b,c\n"d,e,f\ng,h,i\n'])
def test_csv_with_other_columns_is_named(content):
    with pytest.raises(DataError, match=r"x.csv, line \d: \d columns, 3 are needed"):
        list(csv_rows("x.csv", content, 3))


def test_tar_members_are_read_without_unpacking(tmp_path):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("in/a.csv", "in/b.txt", "../../c.csv"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"hi"))
    assert tar_members(archive, lambda name: name.endswith(".csv")) == {"in/a.csv": b"hi", "../../c.csv": b"hi"}
    archive.write_bytes(archive.read_bytes()[:600])
    with pytest.raises(DataError, match="truncated or corrupt tar"):
        tar_members(archive, bool)


def test_the_folder_may_be_the_workloads_own_or_the_one_above(tmp_path, monkeypatch):
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    (tmp_path / "mmlu").mkdir()
    assert data_folder("mmlu", None) == (None, "")
    assert data_folder("mmlu", tmp_path)[0].path == tmp_path / "mmlu"
    assert data_folder("mmlu", tmp_path / "mmlu")[0].path == tmp_path / "mmlu"
    assert data_folder("hellaswag", tmp_path)[0].path == tmp_path, "what is given is used, or refused later"
    monkeypatch.setenv("RADIXLAB_DATA", str(tmp_path))
    assert data_folder("mmlu", None)[0].path == tmp_path / "mmlu"
    assert data_folder("hellaswag", None) == (None, f"RADIXLAB_DATA={tmp_path} has no folder hellaswag/")
    monkeypatch.setenv("RADIXLAB_DATA", str(tmp_path / "mmlu"))
    assert data_folder("mmlu", None)[0].path == tmp_path / "mmlu"


def test_a_folder_that_is_not_there_is_refused_wherever_it_was_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"workload.data_dir=.*nowhere: there is no such file or folder"):
        data_folder("mmlu", tmp_path / "nowhere")
    monkeypatch.setenv("RADIXLAB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"RADIXLAB_DATA=.*nowhere: there is no such file or folder"):
        data_folder("mmlu", None)


def test_digest_is_sha256sum(tmp_path):
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest({"any": b"abc"}) == abc
    assert digest({"b": b"abc", "a": b"abc"}) == digest({"x": f"{abc}  a\n{abc}  b\n".encode()})


def test_a_hub_that_refuses_or_is_silent_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(data, "HUB_SECONDS", 0.05)
        silence = hub_silence("a/b")
    assert "answer within 0.05 s" in silence or "timed out" in silence
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert from_hub("a/b", None, ("test",)).splits is None
    assert "127.0.0.1:9 can't be reached" in from_hub("a/b", None, ("test",)).why_not


def pretend_datasets(monkeypatch, load):
    module = types.ModuleType("datasets")
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_offline_only_the_local_cache_is_asked(monkeypatch):
    monkeypatch.setattr(data, "hub_silence", lambda _: pytest.fail("the network was asked"))
    pretend_datasets(monkeypatch, lambda name, config, split: [{"name": name, "config": config, "split": split}])
    answer = from_hub("a/b", "all", ("dev", "test"))
    assert answer.splits["test"] == [{"name": "a/b", "config": "all", "split": "test"}]
    lines = {split: (json.dumps(row[0], sort_keys=True) + "\n").encode() for split, row in answer.splits.items()}
    assert answer.digest() == digest(lines)

    def fail(name, config, split):
        raise ConnectionError("not cached\nlong story")

    pretend_datasets(monkeypatch, fail)
    assert from_hub("a/b", "all", ("dev",)).why_not == (
        "the local cache (HF_HUB_OFFLINE is set) gave no a/b: ConnectionError: not cached"
    )
