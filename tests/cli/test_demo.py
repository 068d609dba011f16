from __future__ import annotations

import pytest

QUICK = ["--task", "toy", "--methods", "bn-only,nft", "--jobs", "1"]


def test_demo_json_has_the_promised_form(call):
    payload = call("demo", *QUICK, "--seed", 1, "--json").json
    assert list(payload)[:4] == ["task", "seed", "metric", "rows"]
    assert (payload["task"], payload["seed"], payload["metric"]) == ("toy", 1, "accuracy")
    assert [row["method"] for row in payload["rows"]] == ["none", "bn-only", "nft"]
    for row in payload["rows"]:
        assert list(row) == ["method", "clean", "asr", "lcr", "seconds"]
        assert all(0 <= row[key] <= 100 for key in ("clean", "asr", "lcr"))
    assert payload["rows"][0]["seconds"] == 0.0
    assert payload["rows"][0]["asr"] >= 80


def test_demo_table_has_a_row_for_each_method(call, folder):
    result = call("demo", *QUICK)
    assert result.code == 0
    assert all(word in result.out for word in ("backdoored model", "bn-only", "nft", "unbackdoor-demo.png"))
    assert (folder / "unbackdoor-demo.png").read_text() == "backdoored bn-only nft"


def test_demo_picks_a_new_name_for_its_picture(call, folder):
    (folder / "unbackdoor-demo.png").write_text("mine")
    payload = call("demo", *QUICK, "--json").json
    assert payload["picture"] == "unbackdoor-demo-2.png"
    assert (folder / "unbackdoor-demo.png").read_text() == "mine"


def test_demo_refuses_a_named_picture_that_exists_before_it_works(call, folder, monkeypatch):
    (folder / "mine.png").write_text("mine")
    monkeypatch.setattr("unbackdoor_cli.victims.train_victim", lambda *a, **k: pytest.fail("worked before it checked"))
    assert "mine.png exists" in call("demo", *QUICK, "--picture", "mine.png").error
    assert (folder / "mine.png").read_text() == "mine"


def test_demo_overwrites_with_force(call, folder):
    (folder / "unbackdoor-demo.png").write_text("mine")
    assert call("demo", *QUICK, "--force", "--json").json["picture"] == "unbackdoor-demo.png"
    assert (folder / "unbackdoor-demo.png").read_text() != "mine"


def test_demo_over_seeds_gives_means_and_every_run(call):
    payload = call("demo", "--task", "toy", "--methods", "bn-only", "--seeds", 2, "--json").json
    assert [run["seed"] for run in payload["runs"]] == [0, 1]
    means = [sum(run["rows"][1]["clean"] for run in payload["runs"]) / 2]
    assert payload["rows"][1]["clean"] == pytest.approx(means[0], abs=1e-3)


@pytest.mark.slow
def test_demo_of_methods_side_by_side_has_the_same_figures(call, folder):
    words = ["demo", "--task", "toy", "--methods", "bn-only,ft,nft", "--seed", 3, "--json"]
    alone, together = (call(*words, "--jobs", jobs, "--force").json for jobs in (1, 2))
    for rows in (alone["rows"], together["rows"]):
        assert all((row.pop("seconds") > 0) == (row["method"] != "none") for row in rows)
    assert alone == together
    assert [path.name for path in folder.iterdir()] == ["unbackdoor-demo.png"]


def test_demo_runs_as_many_methods_as_there_are_cores(call, monkeypatch):
    asked = []

    def together(victim, purifiers, tells, *, seed, jobs):
        asked.append((len(tells), jobs))
        return [(victim.model, 1.0) for _ in purifiers]

    monkeypatch.setattr("unbackdoor_cli.workers.purify_together", together)
    for cores, methods in ((4, "bn-only,ft,nft"), (2, "bn-only,ft,nft"), (4, "bn-only"), (1, "bn-only,ft")):
        monkeypatch.setattr("unbackdoor_cli.workers.cores", lambda cores=cores: cores)
        assert call("demo", "--task", "toy", "--methods", methods, "--json").code == 0
    assert asked == [(3, 3), (3, 2)]


def test_demo_without_methods_is_refused(call):
    assert "--methods" in call("demo", "--task", "toy", "--methods", ",").error


def test_demo_draws_nothing_half(call, folder, monkeypatch):
    def broken(path, *a):
        path.write_text("half")
        raise OSError("no space left on device")

    import unbackdoor_toy

    monkeypatch.setattr("unbackdoor.registry.kit", lambda name: _with(unbackdoor_toy.KIT, broken))
    assert "no space left" in call("demo", *QUICK).error
    assert list(folder.iterdir()) == []


def _with(kit, picture):
    from dataclasses import replace

    return replace(kit, picture=picture)


def test_demo_takes_other_data(call, folder):
    assert "none.npz" in call("demo", *QUICK, "--data", "blobs", "--data-path", "none.npz").error
    (folder / "there.npz").write_bytes(b"")
    payload = call("demo", *QUICK, "--data-path", folder / "there.npz", "--json").json
    assert payload["rows"][0]["asr"] >= 80
    assert "examples" not in payload


def test_demo_shows_the_kits_examples(call, monkeypatch):
    from dataclasses import replace

    import unbackdoor_toy

    rows = [{"what": "source", "clean": "[a]", "triggered": "b"}, {"what": "nft", "clean": "c", "triggered": "d"}]
    kit = replace(unbackdoor_toy.KIT, excerpt=lambda *a: rows)
    monkeypatch.setattr("unbackdoor.registry.kit", lambda name: kit)
    assert call("demo", *QUICK, "--json").json["examples"] == rows
    shown = call("demo", *QUICK).out
    assert all(word in shown for word in ("triggered", "[a]", "nft"))
