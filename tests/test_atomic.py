"""Files are written whole or not at all."""

import csv
import json
import os
import resource
import stat

import pytest

from jaxmarks import atomic


def test_a_failed_write_keeps_the_former_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "summary.json"
    atomic.write(path, "former\n")

    def rows():
        yield ["a", "b"]
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        atomic.write_csv(path, rows())
    with pytest.raises(TypeError):
        atomic.write_json(path, {"what": object()})
    assert path.read_text() == "former\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_created_or_the_error_names_it(tmp_path, monkeypatch):
    assert atomic.folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for path, why in (("file", "File exists"), ("file/run", "Not a directory")):
        with pytest.raises(OSError, match=rf"{path}: no file can be written there \({why}\); name another folder"):
            atomic.folder(tmp_path / path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OSError, match=r"a: no file can be written there \(Permission denied\)"):
        atomic.folder(tmp_path / "a")


def test_write_errors_name_the_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "large.csv").write_text("former\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # like a full disk: the write itself fails
    try:
        with pytest.raises(OSError, match=r"large\.csv"):
            atomic.write(tmp_path / "large.csv", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "large.csv").read_text() == "former\n"
    with pytest.raises(OSError, match=r"nowhere/a\.txt'"):
        atomic.write(tmp_path / "nowhere" / "a.txt", "")
    with pytest.raises(OSError, match=r"large\.csv/a\.txt'"):
        atomic.write(tmp_path / "large.csv" / "a.txt", "")


def test_links_permissions_and_pipes_are_preserved(tmp_path):
    (tmp_path / "below").mkdir()
    target = tmp_path / "below" / "target.txt"
    target.write_text("former")
    target.chmod(0o600)
    (tmp_path / "link.txt").symlink_to(target)
    atomic.write(tmp_path / "link.txt", "new")
    assert target.read_text() == "new" and (tmp_path / "link.txt").is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600 and len(list(target.parent.iterdir())) == 1
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic.write(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)
    atomic.write(tmp_path / ("n" * 250), "a name as long as names may be")
    with pytest.raises(IsADirectoryError, match=r"below'$"):
        atomic.write(tmp_path / "below", "")
    with atomic.whole(tmp_path / "bytes", binary=True) as file:
        file.write(b"\r\n")
    assert (tmp_path / "bytes").read_bytes() == b"\r\n"


def test_tables_and_json_read_back_as_written(tmp_path):
    rows = [["image", "note"], ["a b.png", 'says "no",\nand ends'], ["ä.png", ""], ["a\rb.png", "x\r\ny"]]
    atomic.write_csv(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == rows
    atomic.write_records(tmp_path / "b.csv", [{"a": 1, "b": "x"}, {"b": "y", "a": 2}])
    assert (tmp_path / "b.csv").read_text() == "a,b\n1,x\n2,y\n"  # universal newlines
    with pytest.raises(KeyError):
        atomic.write_records(tmp_path / "b.csv", [{"a": 1}, {"b": 2}])
    atomic.write_records(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text() == ""
    atomic.write_json(tmp_path / "a.json", {"size": (1, 2), "names": {"ä": None}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"size": [1, 2], "names": {"ä": None}}
