from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import unbackdoor
from unbackdoor.attacker.plan import open_victim
from unbackdoor.errors import BadOption, UnknownName
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask
from unbackdoor_bench import Grid, Store, engine, run, summarise, work
from unbackdoor_bench.oracle import Oracle
from unbackdoor_bench.work import draw_clean, steps_of

TOY = Path(__file__).resolve().parents[2] / "cli" / "toy"
QUICK = {"steps": 3, "batch_size": 8}


def grid(victims, **changes):
    words = {"victims": victims, "methods": ["ft"], "options": QUICK, "threads": 1}
    return Grid(**{**words, **changes})


def test_a_cell_holds_what_the_library_gives(victims, tmp_path):
    store, cells = Store(tmp_path / "out"), grid(victims[:1], seeds=[5]).cells()
    run(cells, store)
    content = {cell.label: store.read(cell) for cell in cells}
    scene = open_victim(victims[0])
    model, report = unbackdoor.purify(
        scene.victim.model, scene.data.clean, task=scene.task, method="ft", seed=5, **QUICK
    )
    expected = unbackdoor.evaluate(model, scene.data.test, scene.task, scene.victim.attack)
    mine = content["ft steps=3 batch_size=8"]
    assert mine["figures"] == expected
    assert mine["report"]["hash_after"] == report.hash_after
    assert (mine["status"], mine["steps"], mine["clean"]["count"]) == ("done", 3, len(scene.data.clean))
    assert content["none"]["figures"] == pytest.approx(dict(scene.victim.card.figures))


def test_finished_cells_are_not_run_again(victims, tmp_path, monkeypatch):
    store, cells = Store(tmp_path / "out"), grid(victims).cells()
    run(cells, store)
    lost = next(cell for cell in cells if cell.method == "bn-only")
    store.path(lost).unlink()
    ran = []
    measure = work.measure
    monkeypatch.setattr("unbackdoor_bench.runner.measure", lambda cell, *rest: (ran.append(cell), measure(cell, *rest)))
    beats = []
    run(cells, store, tell=beats.append)
    assert ran == [lost]
    assert [beat.kind for beat in beats].count("kept") == len(cells) - 1
    assert beats[-1].kind == "ended"


def test_an_interrupted_comparison_goes_on(victims, tmp_path, monkeypatch):
    store, cells = Store(tmp_path / "out"), grid(victims[:1]).cells()
    measure, count = work.measure, iter(range(99))

    def stops(cell, *rest):
        if next(count) == 2:
            raise KeyboardInterrupt
        measure(cell, *rest)

    monkeypatch.setattr("unbackdoor_bench.runner.measure", stops)
    with pytest.raises(KeyboardInterrupt):
        run(cells, store)
    assert [store.finished(cell) for cell in cells] == [True, True, False, False]
    monkeypatch.undo()


def test_what_is_refused_stays_and_what_failed_is_tried_again(victims, tmp_path, monkeypatch):
    store, cells = Store(tmp_path / "out"), grid(victims[:1], clean=10**6).cells()
    run(cells, store)
    refused = cells[-1]
    assert store.read(refused)["status"] == "refused"
    assert "clean samples" in store.read(refused)["error"]
    assert store.finished(refused)
    rows = {row.label: row for row in summarise(store.results(cells))}
    assert "refused" in rows[refused.label].problems[0]

    def broken(*arguments, **options):
        raise ZeroDivisionError("boom")

    broken_cells = grid(victims[:1]).cells()
    with monkeypatch.context() as patch:
        patch.setattr(unbackdoor, "purify", broken)
        run(broken_cells, store)
    assert store.read(broken_cells[-1])["status"] == "failed"
    assert "boom" in store.read(broken_cells[-1])["traceback"]
    run(broken_cells, store)
    assert store.read(broken_cells[-1])["status"] == "done"


def test_every_method_of_a_seed_sees_the_same_clean_samples(victims, tmp_path):
    store, cells = Store(tmp_path / "out"), grid(victims[:1], seeds=[0, 1], clean=12).cells()
    run(cells, store)
    hashes = {}
    for cell in cells[1:]:
        hashes.setdefault(cell.seed, set()).add(store.read(cell)["clean"]["hash"])
    assert [len(found) for found in hashes.values()] == [1, 1]
    assert hashes[0] != hashes[1]


def test_drawn_samples_keep_the_proportions_of_the_classes():
    targets = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    clean = Batch(torch.arange(100.0)[:, None], targets)

    class Task(ClassificationTask):
        def strata(self, targets):
            return targets

    drawn, digest = draw_clean(clean, Task(), 20, seed=3)
    assert torch.bincount(drawn.targets).tolist() == [12, 6, 2]
    assert len(torch.unique(drawn.inputs)) == 20
    assert digest == draw_clean(clean, Task(), 20, seed=3)[1] != draw_clean(clean, Task(), 20, seed=4)[1]
    assert len(draw_clean(clean, Task(), None, seed=0)[0]) == 100
    with pytest.raises(BadOption, match="100 at most"):
        draw_clean(clean, Task(), 101, seed=0)


@pytest.mark.parametrize(
    ("steps", "total"), [([], 0), ([5, 10], 10), ([5, 10, 5, 10, 5], 25), ([3, 3], 3), ([10, 2, 7], 17)]
)
def test_steps_add_up_over_rounds(steps, total):
    assert steps_of([{"round": 1.0}, *({"step": float(step)} for step in steps)]) == total


def test_oracle_takes_the_lowest_asr_within_its_budget():
    oracle = Oracle(lambda model: {}, before=90.0, drop=10.0)
    for clean, asr in [(89.0, 50.0), (79.9, 0.0), (80.0, 20.0), (85.0, 20.0), (84.0, 20.0)]:
        oracle.look({"accuracy": clean, "asr": asr}, f"{clean}")
    assert oracle.best == {"figures": {"accuracy": 85.0, "asr": 20.0}, "where": "85.0"}
    assert oracle.looks == 5


def test_oracle_is_a_column_and_changes_nothing_else(victims, tmp_path):
    plain, seen = Store(tmp_path / "plain"), Store(tmp_path / "seen")
    without = grid(victims[:1], methods=["nft"]).cells()
    looked = grid(victims[:1], methods=["nft"], oracle=True, oracle_drop=100.0, trials={"nft.lr": [0.01]}).cells()
    run(without, plain)
    run(looked, seen)
    same = [cell for cell in looked if not cell.trial]
    for one, other in zip(without, same, strict=True):
        assert plain.read(one)["figures"] == seen.read(other)["figures"]
    rows = {row.label: row for row in summarise(seen.results(looked))}
    assert set(rows) == {cell.label for cell in same}
    row = next(row for label, row in rows.items() if label.startswith("nft"))
    assert row.oracle["asr"].mean <= row.after["asr"].mean
    assert all(row.oracle is None for row in summarise(plain.results(without)))


@pytest.mark.slow
def test_two_workers_give_what_one_gives(victims, tmp_path):
    cells = grid(victims, methods=["nft"]).cells()
    alone, together = Store(tmp_path / "alone"), Store(tmp_path / "together")
    run(cells, alone)
    beats = []
    run(cells, together, engine("processes", 2, together.folder), beats.append)
    for cell in cells:
        one, two = alone.read(cell), together.read(cell)
        assert two["status"] == "done", two
        assert one["figures"] == two["figures"]
    assert [beat.kind for beat in beats].count("ended") == len(cells)  # "moved" only where a cell outlasts a look
    assert not list((together.folder / "progress").iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its log files open
@pytest.mark.parametrize(
    ("name", "package", "options"),
    [("ray", "ray", {}), ("slurm", "submitit", {"cluster": "local"}), ("slurm", "submitit", {"cluster": "debug"})],
    ids=["ray", "slurm-local", "slurm-debug"],
)
def test_two_workers_of_other_engines_give_the_same(victims, tmp_path, monkeypatch, name, package, options):
    pytest.importorskip(package)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TOY), os.environ.get("PYTHONPATH", "")]))  # for its workers
    cells = grid(victims[:1], methods=["bn-only"]).cells()
    store, alone = Store(tmp_path / "out"), Store(tmp_path / "alone")
    run(cells, store, engine(name, 2, store.folder, options))
    run(cells, alone)
    contents = [store.read(cell) for cell in cells]
    assert {content["status"] for content in contents} == {"done"}, contents
    assert [content["figures"] for content in contents] == [alone.read(cell)["figures"] for cell in cells]


class Submitted:
    """A job of a cluster that ends when it is told to."""

    job_id = "1"

    def __init__(self, call):
        self.call, self.ended, self.cancelled = call, False, False

    def done(self):
        return self.ended

    def cancel(self):
        self.cancelled = True

    def exception(self):
        return None


class Cluster:
    """In submitit's place: remembers what it is given."""

    def __init__(self, folder, cluster):
        self.cluster, self.jobs, self.parameters = cluster, [], {}
        type(self).last = self

    def update_parameters(self, **parameters):
        self.parameters |= parameters

    def submit(self, call):
        self.jobs.append(Submitted(call))
        return self.jobs[-1]


def test_no_more_jobs_than_workers_are_on_their_way(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Cluster))
    made = engine("slurm", 2, tmp_path, {"slurm_partition": "gpu", "timeout_min": "30"})
    waiting = [made.submit(int, number) for number in range(5)]
    cluster = Cluster.last
    assert (cluster.cluster, cluster.parameters["slurm_partition"], cluster.parameters["timeout_min"]) == (
        "slurm", "gpu", 30,
    )  # fmt: skip
    assert [job.done() for job in waiting] == [False] * 5
    assert len(cluster.jobs) == 2
    cluster.jobs[0].ended = True
    assert [job.done() for job in waiting] == [True] + [False] * 4
    assert [job.call() for job in cluster.jobs] == [0, 1, 2]
    waiting[0].result()
    made.close(cancel=True)
    assert [job.cancelled for job in cluster.jobs] == [False, True, True]


class Dead:
    """An engine whose workers die."""

    closed = None

    def submit(self, work, *arguments):
        return self

    def done(self):
        return True

    def result(self):
        raise RuntimeError("killed")

    def close(self, *, cancel):
        self.closed = cancel


def test_a_dead_worker_is_a_failed_cell(victims, tmp_path):
    cells, store, dead = grid(victims[:1]).cells(), Store(tmp_path / "out"), Dead()
    run(cells, store, dead)
    assert {store.read(cell)["error"] for cell in cells} == {"RuntimeError: killed"}
    assert not any(store.finished(cell) for cell in cells)
    assert dead.closed is False


def test_engines_refuse_what_they_do_not_know(tmp_path):
    with pytest.raises(UnknownName, match="serial"):
        engine("seriel", 1, tmp_path)
    with pytest.raises(BadOption, match="at least 1"):
        engine("processes", 0, tmp_path)
    with pytest.raises(BadOption, match="address"):
        engine("processes", 1, tmp_path, {"address": "x"})


def test_a_renamed_victim_keeps_its_cells(victims, tmp_path):
    store = Store(tmp_path / "out")
    run(grid(victims[:1]).cells(), store)
    moved = victims[0].rename(victims[0].with_name("moved"))
    cells = grid([moved]).cells()
    assert all(store.finished(cell) for cell in cells)
    assert json.loads(next((store.folder / "cells").glob("*none*")).read_text())["victim"] == "v0"
