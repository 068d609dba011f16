"""Victims' folders whose files are not what the card says: links, devices, pipes, tampered bytes, no card at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from hostile.traps import lay
from hostile.victims import honest, write

__all__ = ["hostile_folders"]

Builder = Callable[[Path], Path]


def hostile_folders() -> Iterator[tuple[str, Builder]]:
    """Name and builder of each."""
    for name in ("card.json", "model.safetensors", "attack.safetensors"):
        for what, change in _CHANGES.items():
            yield f"{name} {what}", _file("image", name, change)
    for what, change in _CHANGES.items():
        yield f"tokeniser.model {what}", _file("translation", "tokeniser.model", change)
    for what, text in _cards():
        yield f"card.json {what}", _card(text)
    for what, edit in _EDITS.items():
        yield f"hashes {what}", _edited(edit)
    for what, state in _states():
        yield f"attack.safetensors {what}", _attack(*state)
    yield "card.json says another size after it was signed", _unsigned("data_options", {"size": 16})
    yield "card.json says another target after it was signed", _unsigned("attack_options", {"target": 3})
    yield "card.json says other figures after it was signed", _unsigned("figures", {"accuracy": 50.0, "asr": 100.0})


def _replaced(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def _elsewhere(path: Path) -> None:
    other = path.parent.parent / "outside" / path.name
    other.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(other)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _pickled(path: Path) -> None:
    path.write_bytes((path.parent / "evil.pkl").read_bytes())


_CHANGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "a link to its own content elsewhere": _elsewhere,
    "a link to a device": lambda path: _replaced(path, lambda p: p.symlink_to("/dev/zero")),
    "a link to itself": lambda path: _replaced(path, lambda p: p.symlink_to(p)),
    "a pipe": lambda path: _replaced(path, os.mkfifo),
    "a folder": lambda path: _replaced(path, Path.mkdir),
    "one bit off": _flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 9),
    "empty": lambda path: path.write_bytes(b""),
    "a pickle": _pickled,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "huge and sparse": lambda path: os.truncate(path, 2**42),
}


def _file(task: str, name: str, change: Callable[[Path], Any]) -> Builder:
    def build(place: Path) -> Path:
        lay(place)
        write(place / "victim", honest(task))
        change(place / "victim" / name)
        return place / "victim"

    return build


def _cards() -> Iterator[tuple[str, Callable[[dict[str, Any]], bytes]]]:
    """Texts that are no card."""

    def plain(card: dict[str, Any]) -> str:
        return json.dumps(card)

    yield "a list", lambda card: json.dumps([card]).encode()
    yield "a word", lambda card: b'"card"'
    yield "null", lambda card: b"null"
    yield "two cards", lambda card: (plain(card) * 2).encode()
    yield "in UTF-16", lambda card: plain(card).encode("utf-16")
    yield "with bytes that are no text", lambda card: plain(card).encode().replace(b"image", b"\xff\xfe\xc3")
    yield "nested without end", lambda card: (plain(card)[:-1] + ', "x": ' + "[" * 10**5 + "]" * 10**5 + "}").encode()
    yield "nested deeply", lambda card: (plain(card)[:-1] + ', "x": ' + '{"a":' * 90 + "1" + "}" * 91).encode()
    yield (
        "with a number of many digits",
        lambda card: plain(card | {"seed": 0}).replace('"seed": 0', '"seed": 1' + "0" * 9999).encode(),
    )
    yield "with a field twice", lambda card: (plain(card)[:-1] + ', "model": "evil:build"}').encode()
    yield (
        "with a hidden option twice",
        lambda card: plain(card).replace('"model_options": {', '"model_options": {"num_classes": 10, ').encode(),
    )
    yield "of many megabytes", lambda card: (plain(card)[:-1] + ', "versions": {"a": "' + "x" * 2**23 + '"}}').encode()
    yield "with a comment", lambda card: ("// card\n" + plain(card)).encode()
    yield "without hashes", lambda card: json.dumps({k: v for k, v in card.items() if k != "hashes"}).encode()
    for field in (
        "task",
        "model",
        "model_options",
        "data",
        "data_options",
        "attack",
        "attack_options",
        "seed",
        "figures",
    ):
        yield (
            f"without {field}",
            lambda card, field=field: json.dumps(  # type: ignore[misc]
                {k: v for k, v in card.items() if k != field}
            ).encode(),
        )


def _card(text: Callable[[dict[str, Any]], bytes]) -> Builder:
    def build(place: Path) -> Path:
        lay(place)
        write(place / "victim", honest("image"))
        path = place / "victim" / "card.json"
        path.write_bytes(text(json.loads(path.read_text())))
        return place / "victim"

    return build


_EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda hashes: {},
    "a list": lambda hashes: list(hashes.items()),
    "null": lambda hashes: None,
    "a text": lambda hashes: "0" * 64,
    "without the model": lambda hashes: {k: v for k, v in hashes.items() if k != "model.safetensors"},
    "without the attack": lambda hashes: {k: v for k, v in hashes.items() if k != "attack.safetensors"},
    "without the card": lambda hashes: {k: v for k, v in hashes.items() if k != "card.json"},
    "of a file more": lambda hashes: {**hashes, "evil.py": "0" * 64},
    "of a file elsewhere": lambda hashes: {**hashes, "../outside/secret.txt": hashlib.sha256(b"a secret").hexdigest()},
    "empty texts": lambda hashes: dict.fromkeys(hashes, ""),
    "null for each": lambda hashes: dict.fromkeys(hashes),
    "numbers": lambda hashes: dict.fromkeys(hashes, 0),
    "of other content": lambda hashes: dict.fromkeys(hashes, "0" * 64),
    "in capitals": lambda hashes: {name: value.upper() for name, value in hashes.items()},
}


def _edited(edit: Callable[[dict[str, Any]], Any]) -> Builder:
    def build(place: Path) -> Path:
        lay(place)
        write(place / "victim", honest("image"))
        path = place / "victim" / "card.json"
        card = json.loads(path.read_text())
        path.write_text(json.dumps({**card, "hashes": edit(card.get("hashes", {}))}))
        return place / "victim"

    return build


def _unsigned(field: str, value: dict[str, Any]) -> Builder:
    def build(place: Path) -> Path:
        lay(place)
        write(place / "victim", honest("image"))
        path = place / "victim" / "card.json"
        card = json.loads(path.read_text())
        path.write_text(json.dumps({**card, field: {**card[field], **value}}))
        return place / "victim"

    return build


def _states() -> Iterator[tuple[str, tuple[str, dict[str, torch.Tensor] | None, bytes | None]]]:
    """Tensors of the attack (None: the honest ones), rightly signed, that do not fit it, and bytes of a tokeniser."""
    pattern = torch.rand(1, 8, 8)
    tensors: dict[str, dict[str, torch.Tensor]] = {
        "with a pattern of no dimension": {"pattern": torch.tensor(0.5)},
        "with a pattern of one dimension": {"pattern": torch.rand(8)},
        "with a pattern of other channels": {"pattern": torch.rand(3, 8, 8)},
        "with an empty pattern": {"pattern": torch.rand(1, 0, 8)},
        "with a pattern of NaN": {"pattern": torch.full((1, 8, 8), float("nan"))},
        "with a tensor in the place of an option": {"pattern": pattern, "target": torch.tensor(3)},
        "with a tensor that no attack has": {"pattern": pattern, "evil": torch.tensor(3)},
        "with a tensor that hides a method": {"pattern": pattern, "trigger": torch.tensor(3)},
    }
    for what, state in tensors.items():
        yield what, ("image", state, None)
    for what, content in {
        "with a tokeniser's name on the Hub": b"hub\0" + b"2:evil/model",
        "with a tokeniser's folder elsewhere": b"hub\0" + b"2:{outside}/repo",
        "with a tokeniser of an unknown kind": b"evil" + b"x" * 9,
        "with a tokeniser of noise": b"spm\0" + bytes(range(256)),
        "with an empty tokeniser": b"",
        "with a pickled tokeniser": b"hub\0" + b"\x80\x04cos\nsystem\n",
    }.items():
        yield what, ("translation", None, content)
    yield "without a tokeniser", ("translation", {}, None)


def _attack(task: str, state: dict[str, torch.Tensor] | None, tokeniser: bytes | None) -> Builder:
    def build(place: Path) -> Path:
        lay(place)
        own = safetensors.torch.load(honest(task).files["attack.safetensors"])
        tensors = own if state is None else dict(state)
        if tokeniser is not None:
            content = tokeniser.replace(b"{outside}", str(place / "outside").encode())
            tensors["tokeniser"] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[
                : len(content)
            ].clone()
        write(place / "victim", honest(task).changed({"attack.safetensors": safetensors.torch.save(tensors)}))
        return place / "victim"

    return build
