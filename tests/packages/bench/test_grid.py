from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unbackdoor.errors import BadOption, FileRefused, UnknownName
from unbackdoor.registry import method_names
from unbackdoor_bench import Cell, Grid
from unbackdoor_bench.grid import expand_methods, names_of_victims

CELL = Cell(victim="v", victim_hash="aa", method="ft", label="ft", options={"lr": 0.1, "steps": 3}, seed=1)


@pytest.mark.parametrize(
    "change",
    [{"victim_hash": "bb"}, {"method": "nft"}, {"options": {"lr": 0.2, "steps": 3}}, {"seed": 2}, {"clean": 5}],
)
def test_identity_follows_what_the_result_depends_on(change):
    assert replace(CELL, **change).identity != CELL.identity


@pytest.mark.parametrize(
    "change",
    [
        {"victim": "w"},
        {"folder": "elsewhere"},
        {"device": "cuda"},
        {"options": {"steps": 3, "lr": 0.1}},
        {"label": "x"},
    ],
)
def test_identity_ignores_where_and_how_it_runs(change):
    assert replace(CELL, **change).identity == CELL.identity


def test_controls_stand_beside_every_comparison(victims):
    cells = Grid(victims=victims[:1], methods=["nft"]).cells()
    assert [cell.label for cell in cells] == ["none", "bn-only", "ft mixup=1.0", "nft"]
    assert cells[2].options["mixup"] == 1.0


def test_grid_has_a_cell_for_every_victim_method_and_seed(victims):
    cells = Grid(victims=victims, methods=["ft", "nft"], seeds=[3, 4]).cells()
    assert len(cells) == 2 * (1 + 2 * 4)
    assert len({cell.identity for cell in cells}) == len(cells)
    assert {cell.seed for cell in cells if cell.method == "nft"} == {3, 4}


def test_all_methods_means_what_the_registry_knows():
    assert expand_methods("all") == method_names()
    assert expand_methods("nft, ft,nft") == ["nft", "ft"]
    with pytest.raises(UnknownName, match="nfft"):
        expand_methods("nfft")
    with pytest.raises(BadOption, match="no method"):
        expand_methods(",")


def test_options_reach_one_method_or_all_that_have_them(victims):
    grid = Grid(victims=victims[:1], methods=["nft", "ft"], options={"nft.alpha": 0.5, "steps": 7})
    cells = {cell.label: cell for cell in grid.cells()}
    assert cells["nft steps=7 alpha=0.5"].options["alpha"] == 0.5
    assert cells["ft steps=7"].options["steps"] == 7
    assert "alpha" not in cells["ft steps=7"].options


def test_a_control_that_is_asked_for_too_comes_once(victims):
    grid = Grid(victims=victims[:1], methods=["ft", "bn-only"], options={"ft.mixup": 1.0})
    assert [cell.label for cell in grid.cells()] == ["none", "bn-only", "ft mixup=1.0"]


@pytest.mark.parametrize("options", [{"ft.rounds": 1}, {"nonsense": 1}, {"f-fip.steps": 1}])
def test_options_of_nobody_are_refused(victims, options):
    with pytest.raises(BadOption):
        Grid(victims=victims[:1], methods=["nft"], options=options).cells()


def test_variants_belong_to_the_oracle(victims):
    grid = Grid(victims=victims[:1], methods=["ft"], trials={"ft.lr": [0.1, 0.5]}, oracle=True)
    assert [cell.label for cell in grid.cells() if cell.trial] == ["ft lr=0.1", "ft lr=0.5"]
    with pytest.raises(BadOption, match="oracle"):
        Grid(victims=victims[:1], methods=["ft"], trials={"ft.lr": [0.1]}).cells()


def test_a_folder_without_victim_is_refused(tmp_path):
    with pytest.raises(FileRefused, match="no victim"):
        Grid(victims=[tmp_path], methods=["ft"]).cells()


def test_names_of_victims_are_short_and_differ():
    assert names_of_victims([Path("a/x"), Path("a/y")]) == ["x", "y"]
    assert names_of_victims([Path("a/x"), Path("b/x")]) == ["a-x", "b-x"]
