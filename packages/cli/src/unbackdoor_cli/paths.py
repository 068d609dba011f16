"""Whether a result can be written, asked before the work and not after it; what is read is never written over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from unbackdoor.errors import BadOption, FileRefused, UnbackdoorError
from unbackdoor.files.reading import read_json
from unbackdoor.files.writing import check_targets, settle

__all__ = ["check_outputs", "files_named", "fresh_name", "report_of"]

_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def check_outputs(
    outputs: Sequence[Path], inputs: Iterable[Path | str | None], *, force: bool, words: Iterable[str] = ()
) -> None:
    """Refuse outputs that cannot be written together, or that would replace what the command reads.

    Args:
        outputs: Files to write.
        inputs: Files and folders that the command reads; a file in such a folder is not replaced either.
        force: Files that exist may be replaced, but for inputs.
        words: Values of options (``name=value``) and names of models, some of which may be files too.

    Raises:
        FileRefused: Says which file, and what to do.
    """
    for path in outputs:
        settle(path.parent)
    given = [Path(path) for path in inputs if path is not None]
    for source in [*given, *files_named(words), *(path for folder in given for path in _of_victim(folder))]:
        for path in outputs:
            _check_apart(path, source)
    check_targets(outputs, force=force)


def files_named(words: Iterable[str]) -> Iterator[Path]:
    """Files and folders that ``words`` name, as ``name=path``, as a path or as the user's own ``module:function``."""
    for word in words:
        values = {word, word.partition("=")[2], f"{word.partition(':')[0].replace('.', '/')}.py"}
        yield from (path for path in map(Path, sorted(values)) if str(path) != "." and _exists(path))


def report_of(out: Path, report: Path | None) -> Path:
    """Where the report goes: ``report``, or ``purified.report.json`` beside the weights ``purified.safetensors``.

    Raises:
        BadOption: The name of the weights has another ending than files of weights have.
    """
    if out.suffix not in _WEIGHTS:
        raise BadOption(f"--out is {out}; its name must end in .safetensors (or {', '.join(_WEIGHTS[1:])}).")
    return report or out.with_name(f"{out.stem}.report.json")


def fresh_name(path: Path) -> Path:
    """``path``, or with the first number from 2 on that makes it new: ``picture-2.png``."""
    number, fresh = 2, path
    while os.path.lexists(fresh):
        fresh = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return fresh


def _of_victim(folder: Path) -> Iterator[Path]:
    """What a victim's card says that its data are read from; nothing where there is no card that can be read."""
    if not _exists(folder / "card.json"):
        return
    with suppress(UnbackdoorError):
        options = read_json(folder / "card.json", what="card").get("data_options")
        values = list(options.values()) if isinstance(options, dict) else []
        yield from files_named(value for value in values if isinstance(value, str))


def _check_apart(path: Path, given: Path) -> None:
    if not _exists(path) or not _exists(given):
        return
    if path.samefile(given):
        raise FileRefused(f"{path} is read by this command, so it is not written over, not even with --force.")
    if given.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(given)):
        raise FileRefused(
            f"{path} lies in {given}, which this command reads, so it is not written over, not even with --force; "
            "write to another folder."
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
