"""Folders of a process are told from those that a killed one left."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from unbackdoor.files.folders import OwnFolder, abandoned, temporary, tidy


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_temporary_folder_goes_however_its_block_ends(scratch):
    def work():
        with temporary() as folder:
            (folder.path / "weights").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(scratch.iterdir()) == []


def test_folder_of_a_killed_process_goes_at_the_next_start(scratch):
    killed, alive = OwnFolder.make(scratch, "unbackdoor-"), OwnFolder.make(scratch, "unbackdoor-")
    (killed.path / "victim").mkdir()
    (killed.path / "victim" / "model").write_text("1")
    killed.release()  # as the system does when its process ends
    with temporary() as mine:
        assert set(scratch.iterdir()) == {alive.path, mine.path}
    alive.remove()
    assert list(scratch.iterdir()) == []


def test_folders_of_others_stay(scratch, monkeypatch):
    (scratch / "unbackdoor-mine").mkdir()
    (scratch / "unbackdoor-mine" / "file").write_text("1")
    (scratch / "unbackdoor-link").symlink_to(scratch / "unbackdoor-mine")
    elsewhere = OwnFolder.make(scratch, "unbackdoor-")
    elsewhere.release()
    (elsewhere.path / "owner").write_text('{"host": "another machine"}')
    before = sorted(scratch.rglob("*"))
    tidy()
    assert sorted(scratch.rglob("*")) == before
    (elsewhere.path / "owner").write_text("[]")
    tidy()
    assert sorted(scratch.rglob("*")) == before
    strange = scratch / "unbackdoor-pipe"
    strange.mkdir()
    os.mkfifo(strange / "owner")
    tidy()
    assert strange.exists()
    killed = OwnFolder.make(scratch, "unbackdoor-")
    killed.release()
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    tidy()
    assert killed.path.exists()


def test_folder_that_was_being_made_goes_after_an_hour(scratch):
    (scratch / "unbackdoor-new-x").mkdir()
    tidy()
    assert (scratch / "unbackdoor-new-x").exists()
    os.utime(scratch / "unbackdoor-new-x", (time.time() - 7200,) * 2)
    tidy()
    assert list(scratch.iterdir()) == []


def test_half_removed_folder_goes(scratch):
    (scratch / "unbackdoor-x").mkdir()
    tidy()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("place", ["nothing", "a\0b", "file"])
def test_nothing_is_abandoned_where_nothing_can_be_listed(scratch, place):
    (scratch / "file").write_text("1")
    assert list(abandoned(scratch / place, "x")) == []
