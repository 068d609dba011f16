"""Folders whose names are classes: what is read, what is passed over, and what is refused lest labels be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unbackdoor.errors import BadData, BadOption, FileRefused, TooLarge
from unbackdoor.files.class_folders import ClassFolders, find_parts, read_class_folders
from unbackdoor.files.reading import limited

ENDINGS = (".png", ".jpg")


def lay(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def read(root: Path, **options: object) -> ClassFolders:
    return read_class_folders(root, ENDINGS, **{"what": "images", **options})  # type: ignore[arg-type]


def labels(found: ClassFolders) -> dict[str, int]:
    return dict(zip(found.names, found.labels.tolist(), strict=True))


def test_folders_are_classes_and_files_keep_their_names(tmp_path: Path) -> None:
    found = read(lay(tmp_path, "dog/b.png", "dog/a.JPG", "cat/more/c.png"))
    assert labels(found) == {"cat/more/c.png": 0, "dog/a.JPG": 1, "dog/b.png": 1}
    assert found.classes == ("cat", "dog")
    assert found.files == tuple(tmp_path / name for name in found.names)
    assert found.notices == ()


def test_some_of_the_classes_keep_the_models_order(tmp_path: Path) -> None:
    names = [f"class{letter}" for letter in "abcdefghij"]
    found = read(lay(tmp_path, "classd/1.png", "classj/1.png", "classa/1.png"), classes=names)
    assert labels(found) == {"classa/1.png": 0, "classd/1.png": 3, "classj/1.png": 9}
    assert found.classes == tuple(names)


def test_folder_of_an_unknown_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"hold kat, not among the classes cat, dog.*classes="):
        read(lay(tmp_path, "kat/1.png", "dog/1.png"), classes=["cat", "dog"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cat", "give a list"),
        ([], "names no class"),
        (["cat", "dog", "cat"], "names cat twice"),
        ([1, 2], "give a list"),
        ({"cat"}, "give a list"),
        (3, "give a list"),
    ],
)
def test_classes_that_are_no_list_of_names_are_refused(tmp_path: Path, classes: object, message: str) -> None:
    with pytest.raises(BadOption, match=message):
        read(lay(tmp_path, "cat/1.png"), classes=classes)


@pytest.mark.parametrize(
    "paths",
    [
        ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png"),
        ("Train/cat/1.png", "TEST/cat/1.png"),
        ("train/cat/1.png", "train/dog/1.png"),
        ("train/cat/1.png", "labels/notes.txt"),
        ("training/1.png", "validation/1.png"),
        ("test/cat/1.png", "val/cat/1.png"),
    ],
)
def test_parts_above_the_classes_are_no_classes(tmp_path: Path, paths: tuple[str, ...]) -> None:
    with pytest.raises(BadData, match=r"parts of a data set.*such as .*/[Tt][a-zA-Z]+, or name these .* classes="):
        read(lay(tmp_path, *paths))


def test_a_train_is_a_class_among_others(tmp_path: Path) -> None:
    root = lay(tmp_path, "train/1.png", "bus/1.png")
    assert read(root).classes == ("bus", "train")
    assert find_parts(root) == (root, None)
    assert read(lay(tmp_path, "test/1.png"), classes=["train", "test", "bus"]).labels.tolist() == [2, 1, 0]


def test_parts_are_found_for_loaders(tmp_path: Path) -> None:
    both = lay(tmp_path / "both", "train/cat/1.png", "val/cat/1.png")
    assert find_parts(both) == (both / "train", both / "val")
    alone = lay(tmp_path / "alone", "Train/cat/1.png")
    assert find_parts(alone) == (alone / "Train", None)
    with pytest.raises(BadData, match="without train"):
        find_parts(lay(tmp_path / "tests", "test/cat/1.png"))
    with pytest.raises(FileRefused, match="no folder"):
        find_parts(tmp_path / "nowhere")


def test_the_folder_above_the_class_folders_is_not_taken_for_a_class(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"give .*/images, else name all classes with classes="):
        read(lay(tmp_path, "images/cat/1.png", "images/dog/1.png"))
    assert read(tmp_path, classes=["images", "others"]).labels.tolist() == [0, 0]


def test_files_without_a_class_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="2 images in it lie in no folder that names their class"):
        read(lay(tmp_path / "flat", "1.png", "2.png"))
    found = read(lay(tmp_path / "mixed", "1.png", "cat/1.png", "dog/1.png"))
    assert [notice for notice in found.notices if "no class folder" in notice and "1.png" in notice]


def test_numbers_in_doubt_are_refused_and_either_order_can_be_said(tmp_path: Path) -> None:
    root = lay(tmp_path, *(f"{number}/1.png" for number in range(12)))
    with pytest.raises(BadData, match=r"9 is class 11; as a number it is class 9.*order='text' or order='number'"):
        read(root)
    assert labels(read(root, order="number"))["10/1.png"] == 10
    assert labels(read(root, order="text"))["10/1.png"] == 2
    named = read(root, classes=[str(number) for number in range(12)])
    assert labels(named)["10/1.png"] == 10
    with pytest.raises(BadOption, match="must be one of text, number"):
        read(root, order="name")


def test_numbers_are_read_as_both_orders_agree(tmp_path: Path) -> None:
    assert read(lay(tmp_path / "few", "0/1.png", "1/1.png", "2/1.png")).labels.tolist() == [0, 1, 2]
    padded = read(lay(tmp_path / "padded", *(f"{number:05}/1.png" for number in range(12))))
    assert padded.labels.tolist() == list(range(12))
    with pytest.raises(BadData, match="in doubt"):
        read(lay(tmp_path / "from one", "1/1.png", "2/1.png"))
    assert read(tmp_path / "from one", order="number").classes == ("0", "1", "2")
    with pytest.raises(BadOption, match="no number"):
        read(lay(tmp_path / "words", "cat/1.png", "1/1.png"), order="number")
    with pytest.raises(BadData, match="several spellings"):
        read(lay(tmp_path / "twice", "1/1.png", "01/1.png"), order="number")


def test_a_huge_number_takes_no_memory(tmp_path: Path) -> None:
    root = lay(tmp_path, "0/1.png", "4294967295/1.png")
    with pytest.raises(TooLarge, match="100,000 classes are allowed"):
        read(root, order="number")
    with limited(classes=1), pytest.raises(TooLarge):
        read(root, order="text")


@pytest.mark.parametrize("junk", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "$RECYCLE.BIN", "__pycache__"])
def test_folders_of_tools_are_neither_classes_nor_read_below_classes(tmp_path: Path, junk: str) -> None:
    found = read(lay(tmp_path, "cat/1.png", "dog/1.png", f"{junk}/1.png", f"cat/{junk}/2.png", "dog/._3.png"))
    assert found.names == ("cat/1.png", "dog/1.png")
    assert found.classes == ("cat", "dog")
    assert found.notices == ()


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    root = lay(tmp_path, "cat/1.png", "cat/2.heic", "cat/3.heic", "cat/noend", "dog/1.png", "dog/Thumbs.db")
    (root / "emu").mkdir()
    os.mkfifo(root / "dog" / "pipe.png")
    (root / "dog" / "broken.png").symlink_to("nowhere")
    found = read(root)
    assert found.names == ("cat/1.png", "dog/1.png")
    assert found.classes == ("cat", "dog", "emu")
    told = " ".join(found.notices)
    for words in ("without images: emu", "2 .heic", "1 without an ending", "1 device, pipe or socket", "1 broken link"):
        assert words in told
    assert "Thumbs" not in told


def test_links_are_followed_but_not_in_circles_and_not_twice(tmp_path: Path) -> None:
    lay(tmp_path, "store/5.png", "photos/cat/1.png", "photos/dog/2.png", "elsewhere/bee/6.png")
    root = tmp_path / "photos"
    (root / "cat" / "more").symlink_to("../../store")
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "far up").symlink_to(tmp_path)
    (root / "dog" / "cats").symlink_to("../cat")
    (root / "dog" / "itself").symlink_to("itself")
    (tmp_path / "store" / "again").symlink_to(".")
    (root / "bee").symlink_to("../elsewhere/bee")
    found = read(root)
    assert found.names == ("bee/6.png", "cat/1.png", "cat/more/5.png", "dog/2.png")
    told = " ".join(found.notices)
    for name in ("cat/up", "cat/far up", "dog/cats", "cat/more/again"):
        assert name in told


@pytest.mark.parametrize(("name", "target"), [("loop", "."), ("loop", ".."), ("kitten", "cat"), ("young", "cat/young")])
def test_links_that_make_one_folder_two_classes_are_refused(tmp_path: Path, name: str, target: str) -> None:
    root = lay(tmp_path / "photos", "cat/1.png", "cat/young/2.png", "dog/1.png")
    (root / name).symlink_to(target)
    with pytest.raises(BadData, match="remove"):
        read(root)


def test_odd_names_are_shown_on_one_line(tmp_path: Path) -> None:
    root = lay(tmp_path, "dog/1.png", "\x1b[31mred\n/\x07.png")
    (root / os.fsdecode(b"caf\xe9")).mkdir()
    found = read(root)
    assert all(text.isprintable() for text in (*found.names, *found.classes, *found.notices))
    "".join(found.classes).encode()


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay(tmp_path, "cat/1.png", "dog/1.png")

    def refuse(path: Path) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(FileRefused, match="Permission denied"):
        read(root)
