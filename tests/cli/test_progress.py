from __future__ import annotations

import io

import pytest
from rich.console import Console

from unbackdoor_cli.console import Output
from unbackdoor_cli.progress import stages


def watched(as_json: bool) -> tuple[Output, io.StringIO]:
    output, screen = Output(as_json=as_json), io.StringIO()
    output.err = Console(file=screen, force_terminal=True, width=100)
    return output, screen


def test_progress_tells_stage_and_scalars_to_a_terminal():
    output, screen = watched(as_json=False)
    with stages(output) as shown:
        told = shown.training("training")
        told(1, 2, {"loss": 0.25})
        with shown.short("measuring"):
            pass
    assert all(word in screen.getvalue() for word in ("training", "loss 0.25", "measuring"))


def test_progress_of_what_runs_side_by_side_has_a_line_each():
    output, screen = watched(as_json=False)
    with stages(output) as shown:
        for told in shown.together(["nft", "f-fip"]):
            told(1, 4, {"loss": 0.5})
        lines = [(line.description, line.completed, line.total, line.finished) for line in shown._bars.tasks]
        assert lines == [("nft", 1, 4, False), ("f-fip", 1, 4, False)]
        with shown.short("drawing"):
            assert all(line.finished for line in shown._bars.tasks[:2])
    assert all(word in screen.getvalue() for word in ("nft", "f-fip", "drawing"))


def test_progress_is_silent_with_json():
    output, screen = watched(as_json=True)
    with stages(output) as shown:
        shown.training("training")(1, 2, {"loss": 0.25})
    assert screen.getvalue() == ""


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]):
    Output(as_json=True).result({"asr": float("nan"), "rows": [float("inf"), 1 / 3]})
    assert capsys.readouterr().out == '{"asr": null, "rows": [null, 0.3333]}\n'
