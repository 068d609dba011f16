"""What may be written where, and what is left when it could not be."""

from __future__ import annotations

import json
import os
import socket
from functools import partial
from pathlib import Path

import pytest

from unbackdoor.errors import FileRefused
from unbackdoor.files.writing import check_targets, settle, write_atomically, write_together


def text(content):
    return lambda draft: draft.write_text(content)


def listed(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_files_appear_together_with_their_folders(tmp_path):
    write_together({Path("a/weights"): text("1"), Path("b/c/report"): text("2")})
    assert listed(tmp_path) == ["a", "a/weights", "b", "b/c", "b/c/report"]


def test_no_file_appears_where_one_cannot_be_made(tmp_path):
    def broken(draft):
        draft.write_text("half")
        raise OSError(28, "No space left on device")

    Path("report").write_text("old")
    with pytest.raises(FileRefused, match=r"cannot write .*report: No space left on device"):
        write_together({Path("new/weights"): text("1"), Path("report"): broken}, force=True)
    assert listed(tmp_path) == ["report"]
    assert Path("report").read_text() == "old"


def test_a_refused_draft_has_the_name_of_its_file(tmp_path):
    def full(draft):
        raise OSError(28, "No space left on device")

    with pytest.raises(FileRefused) as refused:
        write_together({Path("weights"): lambda draft: write_atomically(draft, full, force=True)})
    assert str(refused.value) == f"cannot write {tmp_path / 'weights'}: No space left on device."
    assert listed(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(143), MemoryError, ZeroDivisionError])
def test_no_file_appears_where_a_writer_is_interrupted(tmp_path, error):
    def broken(draft):
        raise error

    with pytest.raises(type(error) if isinstance(error, BaseException) else error):
        write_together({Path("weights"): text("1"), Path("report"): broken})
    assert listed(tmp_path) == []


def test_existing_file_is_kept_without_force(tmp_path):
    Path("report").write_text("old")
    with pytest.raises(FileRefused, match="report exists; choose another name"):
        write_together({Path("weights"): text("1"), Path("report"): text("2")})
    assert listed(tmp_path) == ["report"]
    write_together({Path("weights"): text("1"), Path("report"): text("2")}, force=True)
    assert Path("report").read_text() == "2"


@pytest.mark.parametrize("late", ["weights", "report"])
@pytest.mark.parametrize("content", ["theirs", ""])
def test_file_that_appears_during_the_work_is_kept(tmp_path, late, content):
    def slow(draft):
        draft.write_text("ours")
        Path(late).write_text(content)

    with pytest.raises(FileRefused, match=f"{late} exists"):
        write_together({Path("weights"): text("1"), Path("report"): slow})
    assert listed(tmp_path) == [late]
    assert Path(late).read_text() == content


@pytest.mark.parametrize("late", ["weights", "report"])
def test_all_are_old_again_where_the_system_refuses_one(tmp_path, monkeypatch, late):
    for name in ("weights", "report"):
        Path(name).write_text(f"old {name}")
    real = os.replace

    def replace(source, target, **named):
        if Path(target) == tmp_path / late and "drafts" in str(source):
            raise PermissionError(1, "Operation not permitted", str(source), None, str(target))
        return real(source, target, **named)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(FileRefused, match="Operation not permitted"):
        write_together({Path("weights"): text("1"), Path("report"): text("2")}, force=True)
    assert listed(tmp_path) == ["report", "weights"]
    assert [Path(name).read_text() for name in listed(tmp_path)] == ["old report", "old weights"]


@pytest.mark.parametrize("call", ["replace", "link", "rename"])
def test_an_interruption_while_files_are_put_in_place_mixes_nothing(tmp_path, monkeypatch, call):
    for name in ("weights", "report"):
        Path(name).write_text("old")
    real, left = getattr(os, call), [1]

    def interrupted(*given, **named):
        result = real(*given, **named)
        if left.pop() if left else 0:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_together({Path("weights"): text("new"), Path("report"): text("new")}, force=True)
    assert listed(tmp_path) == ["report", "weights"]
    assert len({Path(name).read_text() for name in listed(tmp_path)}) == 1


@pytest.mark.parametrize("force", [False, True])
def test_odd_targets_are_refused(tmp_path, force):
    Path("folder").mkdir()
    Path("file").write_text("theirs")
    os.mkfifo("pipe")
    Path("link").symlink_to("file")
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    Path("locked").mkdir(mode=0o500)
    odd = [
        "/dev/null",
        "pipe",
        "folder",
        "link",
        "dangling",
        "loop",
        "a\0b",
        "n" * 300,
        "new/" + "n" * 300,
        "file/below",
    ]
    odd += ["dangling/below", "loop/below", ".", "folder/..", "", "/"]
    odd += ["locked/below"] if os.geteuid() else []
    before = listed(tmp_path)
    for name in odd:
        for ask in (
            partial(check_targets, [name], force=force),
            partial(write_atomically, name, text(""), force=force),
        ):
            with pytest.raises(FileRefused) as refused:
                ask()
            assert str(refused.value).endswith(".")
            assert "\n" not in str(refused.value)
    assert listed(tmp_path) == before
    assert Path("file").read_text() == "theirs"


def test_two_names_of_one_file_are_refused(tmp_path):
    Path("folder").mkdir()
    Path("same").symlink_to("folder")
    Path("file").write_text("theirs")
    Path("hard").hardlink_to("file")
    for one, other in [
        ("new", "new"), ("new", "./new"), ("new", "folder/../new"), ("folder/new", "same/new"), ("file", "hard"),
        ("new", tmp_path / "new"),
    ]:  # fmt: skip
        with pytest.raises(FileRefused, match="are one file"):
            check_targets([one, other], force=True)
        if Path(one) != Path(other):
            with pytest.raises(FileRefused, match="are one file"):
                write_together({Path(one): text("1"), Path(other): text("2")}, force=True)
    assert Path("file").read_text() == "theirs"


def test_names_that_a_file_system_takes_for_one_are_refused(tmp_path, monkeypatch):
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *given, **named: real(str(path).replace("N", "n"), *given, **named))
    with pytest.raises(FileRefused, match="are one file"):
        write_together({Path("new"): text("1"), Path("New"): text("2")})
    assert listed(tmp_path) == []


def test_rights_are_those_of_the_old_file_or_of_any_new_one(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically("new", text("1"))
    finally:
        os.umask(mask)
    assert Path("new").stat().st_mode & 0o777 == 0o640
    Path("new").chmod(0o600)
    write_atomically("new", text("2"), force=True)
    assert Path("new").stat().st_mode & 0o777 == 0o600


def test_journal_of_a_stranger_moves_nothing(tmp_path):
    """A folder of somebody else may hold what looks like an unfinished write; it must not reach out of that folder."""
    folder = tmp_path / "victim" / ".unbackdoor-evil"
    (folder / "drafts").mkdir(parents=True)
    (folder / "drafts" / "profile").write_text("evil")
    (folder / "owner").write_text(json.dumps({"host": socket.gethostname()}))
    move = {"draft": "drafts/profile", "target": "../../profile", "aside": "aside/profile", "old": None}
    move["new"] = [(folder / "drafts" / "profile").stat().st_ino, 4, 0]
    for mark in ([1, 2], None):
        (folder / "journal.json").write_text(json.dumps({"mark": mark, "force": True, "moves": [move, move]}))
        settle(tmp_path / "victim")
        write_atomically(tmp_path / "victim" / "mine", text("1"), force=True)
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"mark": 1}', "\udcff"], ids=repr)
def test_broken_journal_is_left_alone(tmp_path, content):
    folder = tmp_path / ".unbackdoor-x"
    folder.mkdir()
    (folder / "owner").write_text(json.dumps({"host": socket.gethostname()}))
    (folder / "journal.json").write_bytes(content.encode(errors="surrogateescape"))
    write_atomically("mine", text("1"))
    assert Path("mine").read_text() == "1"
