"""What surrounds a hostile folder: code that leaves a trace when it runs, secrets, and a look at what happened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

__all__ = ["RAN", "lay", "seen", "traces"]

RAN = "RAN"
"""Name of the file that hostile code writes beside everything else."""

_CODE = """
from pathlib import Path
Path({ran!r}).write_text(__name__)

def _nothing(*given, **options):
    Path({ran!r}).write_text("called")
    from torch import nn
    return nn.Linear(2, 2)

build = evil = made = create = _nothing
class Evil:
    def __new__(cls, *given, **options):
        return _nothing()
    from_pretrained = from_config = __new__
EvilConfig = EvilModel = Evil
"""
_MODULES = ("evil.py", "hubconf.py", "multiprocessing.py", "sitecustomize.py", "modeling_evil.py", "evil_task.py")


class _Bomb:
    """Unpickled, it writes the trace."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return exec, (f"open({str(self.ran)!r}, 'w').write('unpickled')",)


def lay(place: Path) -> None:
    """Fill ``place`` with ``victim`` (empty but for code), ``here`` to be the current folder, and ``outside``.

    Code that is imported, loaded or unpickled writes ``place / RAN``; nothing in ``outside`` may change.
    """
    code = _CODE.format(ran=str(place / RAN))
    for folder in ("victim", "here", "outside"):
        (place / folder).mkdir(parents=True)
        for module in _MODULES:
            (place / folder / module).write_text(code)
        (place / folder / "evil.pkl").write_bytes(pickle.dumps(_Bomb(place / RAN)))
        (place / folder / "evil.pt").write_bytes(pickle.dumps(_Bomb(place / RAN)))
    info = place / "here" / "evil_task-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[unbackdoor.tasks]\nevil = evil_task:KIT\n")
    repo = place / "outside" / "repo"
    repo.mkdir()
    (repo / "modeling_evil.py").write_text(code)
    (repo / "configuration_evil.py").write_text(code)
    config = {
        "model_type": "evil",
        "architectures": ["EvilModel"],
        "auto_map": {
            "AutoConfig": "configuration_evil.EvilConfig",
            "AutoModelForSeq2SeqLM": "modeling_evil.EvilModel",
            "AutoTokenizer": ["modeling_evil.Evil", None],
        },
    }
    (repo / "config.json").write_text(json.dumps(config))
    (repo / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Evil"}))
    (place / "outside" / "secret.txt").write_text("a secret")
    (place / "outside" / "secret.model").write_bytes(b"a secret model")
    (place / "outside" / "picture.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")


def seen(place: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below ``place`` with its size and the time of its last change; pipes are not opened."""
    found = {}
    for path in sorted(place.rglob("*")):
        if "__pycache__" in path.parts:
            found[str(path.relative_to(place))] = (0, 0)
            continue
        state = path.lstat()
        found[str(path.relative_to(place))] = (state.st_size, state.st_mtime_ns if not path.is_dir() else 0)
    return found


def traces(place: Path, before: dict[str, tuple[int, int]]) -> list[str]:
    """What is new, gone or changed below ``place`` since `seen` gave ``before``: must be nothing."""
    after = seen(place)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
