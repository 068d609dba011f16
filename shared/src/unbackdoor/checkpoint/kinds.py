"""What a file is, told by its first bytes, so that a message can say so instead of guessing."""

from __future__ import annotations

import zipfile
from pathlib import Path

from unbackdoor.errors import UnsafeCheckpoint
from unbackdoor.files.reading import reading

__all__ = ["kind_of", "shown"]

_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
_LOOKED_AT = 1024
_WANTED = "a .safetensors file or one that torch.save wrote"
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves", "run `git lfs pull`"),
    (b"/annex/objects", "a git-annex pointer, not the weights themselves", "run `git annex get`"),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes", f"give {_WANTED}"),
    (b"GGUF", "a GGUF file of llama.cpp", f"give {_WANTED}"),
    (b"\x93NUMPY", "one numpy array (.npy)", f"weights have names; give {_WANTED}"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it (gunzip, or tar -xzf) and give what is inside"),
    (b"BZh", "compressed with bzip2", "unpack it and give what is inside"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it and give what is inside"),
    (b"(\xb5/\xfd", "compressed with zstd", "unpack it and give what is inside"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it and give what is inside"),
    (b"Rar!", "a RAR archive", "unpack it and give what is inside"),
    (b"\x89PNG", "a picture (PNG)", f"give {_WANTED}"),
    (b"\xff\xd8\xff", "a picture (JPEG)", f"give {_WANTED}"),
    (b"GIF8", "a picture (GIF)", f"give {_WANTED}"),
    (b"%PDF", "a PDF", f"give {_WANTED}"),
    (b"PAR1", "a Parquet file", f"give {_WANTED}"),
    (b"\x7fELF", "a program", f"give {_WANTED}"),
)  # fmt: skip


def shown(name: object, most: int = 120) -> str:
    """A name from a file as it may stand in a message: nothing that a terminal would obey, and not too long."""
    text = str(name)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= most else f"{text[: most - 3]}..."


def kind_of(path: Path) -> str:
    """``"safetensors"``, ``"zip"``, ``"legacy"`` or ``"index"``: how the file is to be read; its name decides nothing.

    Raises:
        UnsafeCheckpoint: It is anything else; says what, and what to do.
        FileRefused: It cannot be read.
    """
    with reading(path), path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    size = path.stat().st_size
    if len(head) >= 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[:1] == b"\x80" and head[2 : 2 + len(_LEGACY)] == _LEGACY:
        return "legacy"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if path.suffix == ".json" and text.startswith(b"{"):
        return "index"
    what, advice = _other(path, head, text)
    raise UnsafeCheckpoint(f"{path} is {what}; {advice}.")


def _zip(path: Path) -> str:
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except ValueError as error:
        raise UnsafeCheckpoint(f"{path} is a damaged zip archive, perhaps cut off; fetch it again.") from error
    inner = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise UnsafeCheckpoint(
            f"{path} is a TorchScript archive, which brings its own program along; give the weights alone, in a "
            "sandbox: torch.save(torch.jit.load(path).state_dict(), 'weights.pt')."
        )
    if "data.pkl" in inner:
        return "zip"
    if names and all(name.endswith(".npy") for name in names):
        raise UnsafeCheckpoint(f"{path} is a file of numpy arrays (.npz); save tensors by name with torch.save.")
    held = ", ".join(shown(name, 40) for name in names[:4]) or "nothing"
    raise UnsafeCheckpoint(
        f"{path} is a zip archive, but none of torch.save (it holds {held}); unpack it and give {_WANTED}."
    )


def _other(path: Path, head: bytes, text: bytes) -> tuple[str, str]:
    """What a file that holds no weights is, and what to do."""
    again = f"fetch it again, or give {_WANTED}"
    if not head:
        return "empty", again
    if not head.strip(b"\0"):
        return "filled with zeros, as a broken download is", again
    lower = text[:200].lower()
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")) or b"<html" in lower:
        return "a web page (HTML), not the file behind it", "download the file itself: the link of its download button"
    if lower.startswith((b"<?xml", b"<error")):
        return "an XML text, often a server's error message", "open it to see why the download failed"
    for beginning, what, advice in _BEGINNINGS:
        if text.startswith(beginning) or head.startswith(beginning):
            return what, advice
    if head[257:262] == b"ustar":
        return "a tar archive", f"unpack it and give what is inside, {_WANTED}"
    if head[:1] == b"\x80" and head[1:2] in b"\0\1\2\3\4\5":
        return (
            "a plain pickle that torch.save did not write, and unpickling runs its author's code",
            "if you trust its source, convert it in a sandbox: torch.save(model.state_dict(), 'weights.pt')",
        )
    return _in_words(path, head, text)


def _in_words(path: Path, head: bytes, text: bytes) -> tuple[str, str]:
    """What a file of no other kind is: a text, or nothing known."""
    again = f"fetch it again, or give {_WANTED}"
    try:
        words = head[:300].decode("utf-8").strip().splitlines()[0]
    except (UnicodeDecodeError, IndexError):
        words = "\0"
    if "\0" in words:
        if path.suffix == ".safetensors":
            return "no safetensors file, or was cut off: its header does not fit its size", again
        return "of no known kind, or damaged", again
    if text.startswith((b"{", b"[")):
        return f"a text in JSON that begins with '{shown(words, 60)}'", f"give {_WANTED}"
    return f"a text that begins with '{shown(words, 60)}'", f"give {_WANTED}"
