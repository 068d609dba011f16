"""What is easily done wrong is done in one room, where its tests are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("shared/src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")])
ROOMS = {
    r"tempfile\.\w+|TemporaryDirectory|NamedTemporaryFile|mkdtemp|mkstemp": {"unbackdoor/files/folders.py"},
    r"(\w+\.)*(ProcessPoolExecutor|get_context|SpawnContext|Popen)": {"unbackdoor/processes.py"},
    r"(os|shutil)\.(replace|rename|link|unlink|move|copy\w*)": {"unbackdoor/files/placing.py"},
}
"""Calls by what they look like, and the module that may make them."""


@pytest.mark.parametrize("call", ROOMS, ids=["temporary folders", "processes", "files put in place"])
def test_call_is_made_in_its_room_alone(call):
    strangers = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in SOURCES
        if not path.as_posix().endswith(tuple(ROOMS[call]))
        and re.search(call, text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and re.fullmatch(call, ast.unparse(node.func))
    ]
    assert strangers == []
