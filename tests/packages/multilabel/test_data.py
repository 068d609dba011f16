"""Loaders on tiny folders of the official layouts, written here."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.task import Batch
from unbackdoor_multilabel import KIT, load_clean
from unbackdoor_multilabel.data.digits import compose, digits
from unbackdoor_multilabel.data.images import decode
from unbackdoor_multilabel.data.official import VOC_CLASSES, _papers_count, coco, voc
from unbackdoor_multilabel.data.splitting import splits
from unbackdoor_multilabel.data.tables import hub, parquet, rows_of


def rows_like(rows):
    return sorted(map(tuple, rows.tolist()))


# -------------------------------------------------------------------------------------------- composed digits


def test_digits_labels_are_what_a_picture_shows():
    """Strokes of one grey level for each class, so that a picture says itself what is in it."""
    labels = torch.arange(10).repeat(3)
    strokes = ((labels + 1) / 16)[:, None, None].expand(-1, 8, 8).contiguous()
    batch = compose(strokes, labels, 200, torch.Generator().manual_seed(0), most=4, margin=1)
    assert batch.inputs.shape == (200, 1, 20, 20)
    for picture, row in zip(batch.inputs, batch.targets, strict=True):
        levels = torch.unique(picture[picture > 0])
        assert torch.equal((levels * 16).round().long() - 1, row.nonzero().flatten())
        assert int((picture > 0).sum()) == 64 * int(row.sum()), "a digit is cut off or hidden by another"
    numbers = batch.targets.sum(1)
    assert sorted(numbers.unique().tolist()) == [1, 2, 3, 4]
    assert int(numbers.bincount().amax()) < 80
    assert float(batch.targets.float().mean(0).std()) < 0.06


def test_digits_are_seeded_and_no_stroke_is_in_two_parts():
    one, same, other = (
        digits(seed=s, train_count=60, clean_count=20, test_count=20, fewest=1, most=1) for s in (0, 0, 1)
    )
    assert torch.equal(one.train.inputs, same.train.inputs)
    assert not torch.equal(one.train.inputs, other.train.inputs)

    def strokes(batch):  # the ink alone, wherever it lies
        return {tuple(sorted(p[p > 0].tolist())) for p in batch.inputs}

    parts = [strokes(part) for part in (one.train, one.clean, one.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    for words in ({"most": 5}, {"margin": -1}, {"clean_count": 0}):
        with pytest.raises(BadOption, match=next(iter(words))):
            digits(**words)


# ------------------------------------------------------------------------------------------------ VOC and COCO


def write_voc(root, year, parts, jpeg):
    """``parts``: names of image sets, each a list of (objects, their difficult flags)."""
    base = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for part, images in parts.items():
        names = []
        for number, objects in enumerate(images):
            name = f"{year}_{part}_{number:03d}"
            names.append(name)
            (base / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg(10 * number % 250))
            found = "".join(
                f"<object><name>{label}</name><difficult>{flag}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
                "<xmax>5</xmax><ymax>5</ymax></bndbox></object>"
                for label, flag in objects
            )
            text = f"<annotation><filename>{name}.jpg</filename>{found}</annotation>"
            (base / "Annotations" / f"{name}.xml").write_text(text)
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")


CAT, DOG, OLD = ("cat", 0), ("dog", 0), ("sofa", 1)


def test_the_papers_clean_set_is_taken_where_as_many_are_left():
    assert _papers_count(16_551, None, None) == 5000  # VOC 2007 and 2012, trainval
    assert _papers_count(10_000, None, None) == 5000
    assert _papers_count(9_999, None, None) is None, "then the default share holds"
    assert _papers_count(82_783, None, 700) == 700
    assert _papers_count(82_783, 0.2, None) is None


def test_voc_2012_is_read_from_its_official_folders(tmp_path, jpeg):
    write_voc(tmp_path, "2012", {"train": [[CAT], [CAT, DOG], [DOG, OLD]] * 7, "val": [[DOG], [CAT, CAT]]}, jpeg)
    data = voc(path=tmp_path, size=8, clean_share=0.2)
    assert data.classes == VOC_CLASSES
    assert (len(data.train), len(data.clean), len(data.test)) == (17, 4, 2)
    assert data.train.inputs.shape == (17, 3, 8, 8)
    assert data.train.inputs.dtype is torch.uint8
    cat, dog, sofa = (VOC_CLASSES.index(name) for name in ("cat", "dog", "sofa"))
    assert data.test.targets[0].nonzero().flatten().tolist() == [dog]
    assert data.test.targets[1].nonzero().flatten().tolist() == [cat]
    both = torch.cat([data.train.targets, data.clean.targets])
    assert both.sum(0)[[cat, dog, sofa]].tolist() == [14, 14, 0]
    with_difficult = voc(path=tmp_path / "VOCdevkit", size=8, difficult=True)
    assert int(with_difficult.train.targets[:, sofa].sum() + with_difficult.clean.targets[:, sofa].sum()) == 7
    assert data.attack_hints == {"rate": 0.05}
    assert data.hints == {"flip": True}


def test_voc_2007_and_both_years(tmp_path, jpeg):
    write_voc(tmp_path, "2007", {"trainval": [[CAT]] * 12, "test": [[DOG]] * 3}, jpeg)
    alone = voc(path=tmp_path, year="2007", size=6, clean_count=2)
    assert (len(alone.train), len(alone.clean), len(alone.test)) == (10, 2, 3)
    with pytest.raises(FileRefused, match="VOC 2012 trainval"):
        voc(path=tmp_path, year="2007+2012", size=6)
    write_voc(tmp_path, "2012", {"trainval": [[DOG]] * 8}, jpeg)
    both = voc(path=tmp_path, year="2007+2012", size=6, clean_count=5)
    assert (len(both.train), len(both.clean), len(both.test)) == (15, 5, 3)
    for words, error, message in (
        ({"path": None}, FileRefused, "Nothing is downloaded"),
        ({"path": tmp_path / "nowhere"}, FileRefused, "VOCdevkit"),
        ({"path": tmp_path, "year": "2010"}, BadOption, "2007"),
    ):
        with pytest.raises(error, match=message):
            voc(**words)


def test_voc_refuses_an_unknown_object(tmp_path, jpeg):
    write_voc(tmp_path, "2012", {"train": [[("unicorn", 0)]] * 3, "val": [[CAT]]}, jpeg)
    with pytest.raises(BadData, match="unicorn"):
        voc(path=tmp_path, size=6)


def write_coco(root, year, jpeg):
    """Category ids with gaps, and ids of images out of order, as in the real files."""
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    (root / "annotations").mkdir(exist_ok=True)
    shown = {"train": [[1], [1, 18], [18], []] * 5, "val": [[90, 1], [18]]}
    for part, labels in shown.items():
        folder = root / f"{part}{year}"
        folder.mkdir()
        images, notes = [], []
        for number, found in enumerate(labels):
            name = f"{number:012d}.jpg"
            (folder / name).write_bytes(jpeg(8 * number))
            images.append({"id": 1000 - number, "file_name": name, "width": 12, "height": 9})
            boxes = [{"image_id": 1000 - number, "category_id": label, "bbox": [0, 0, 3, 3]} for label in found]
            notes += [{"id": len(notes) + place, **box} for place, box in enumerate(boxes * 2)]
        text = json.dumps({"images": images, "annotations": notes, "categories": categories})
        (root / "annotations" / f"instances_{part}{year}.json").write_text(text)


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco_is_read_from_its_official_folders(tmp_path, jpeg, year):
    write_coco(tmp_path, year, jpeg)
    data = coco(path=tmp_path, year=year, size=8, clean_count=4)
    assert data.classes == ("person", "dog", "toothbrush")
    assert (len(data.train), len(data.clean), len(data.test)) == (16, 4, 2)
    assert rows_like(data.test.targets) == [(0, 1, 0), (1, 0, 1)]
    both = torch.cat([data.train.targets, data.clean.targets])
    assert both.sum(0).tolist() == [10, 10, 0]
    greys = ((data.train.inputs[:, 0, 0, 0].double() + 1) / 8).floor().int().tolist()  # JPEG may be off by one
    for number, row in zip(greys, data.train.targets.tolist(), strict=True):
        assert row == [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]][number % 4]
    assert data.attack_hints == {"rate": 0.015}


def test_coco_says_what_is_missing(tmp_path, jpeg):
    write_coco(tmp_path, "2014", jpeg)
    with pytest.raises(FileRefused, match="instances_train2017"):
        coco(path=tmp_path, year="2017")
    (tmp_path / "annotations" / "instances_val2014.json").write_text('{"images": []}')
    with pytest.raises(BadData, match="no COCO instances"):
        coco(path=tmp_path, year="2014", size=6)


# ---------------------------------------------------------------------------------- Parquet, Hub, the user's own


def write_parquet(path, jpeg, lists, metadata=None, **columns):
    images = [{"bytes": jpeg(5 * number), "path": None} for number in range(len(lists))]
    table = pa.table({"img": images, "labels": lists, **columns})
    pq.write_table(table.replace_schema_metadata(metadata or {}), path)


def test_parquet_with_a_split_column_and_class_names(tmp_path, jpeg):
    lists = [[0], [1, 2], [0, 2], [1]] * 5 + [[2], []]
    names = {"label_names": json.dumps(["a", "b", "c"])}
    write_parquet(tmp_path / "all.parquet", jpeg, lists, names, split=["train"] * 20 + ["val"] * 2)
    data = parquet(path=tmp_path / "all.parquet", size=6, clean_count=4)
    assert data.classes == ("a", "b", "c")
    assert (len(data.train), len(data.clean)) == (16, 4)
    assert data.test.targets.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_parquet_files_by_name_and_labels_by_name(tmp_path, jpeg):
    write_parquet(tmp_path / "x_train.parquet", jpeg, [["cat"], ["dog", "cat"], ["dog"]] * 4)
    write_parquet(tmp_path / "x_test.parquet", jpeg, [["dog"]])
    data = parquet(path=tmp_path, size=6, clean_count=3)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.clean), data.test.targets.tolist()) == (9, 3, [[0, 1]])
    shared = parquet(path=tmp_path / "x_train.parquet", size=6, clean_count=3, test_share=0.25)
    assert (len(shared.train), len(shared.clean), len(shared.test)) == (6, 3, 3)


def test_parquet_says_what_is_wrong(tmp_path, jpeg):
    write_parquet(tmp_path / "a.parquet", jpeg, [1, 2, 3])
    with pytest.raises(BadData, match="holds no lists"):
        parquet(path=tmp_path / "a.parquet", size=6)
    with pytest.raises(BadData, match="label_column is 'tags', but the columns are img, labels"):
        parquet(path=tmp_path / "a.parquet", label_column="tags")
    with pytest.raises(FileRefused, match="Parquet"):
        parquet(path=tmp_path / "b.parquet")
    with pytest.raises(BadData, match="there are 2 classes"):
        rows_of([[0], [2]], ("a", "b"), "labels")
    with pytest.raises(BadData, match="mixes"):
        rows_of([[0], ["a"]], (), "labels")


def test_hub_reads_a_local_folder(tmp_path, jpeg, monkeypatch):
    pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train-0.parquet", jpeg, [["cat"], ["dog", "cat"], ["dog"]] * 4)
    data = hub(path=tmp_path / "set", size=6, clean_count=3, test_split=None)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.clean) + len(data.test) == 12


def test_load_clean_reads_folders_tables_and_arrays(tmp_path, jpeg):
    (tmp_path / "own").mkdir()
    lines = []
    for number, labels in enumerate([["dog"], ["cat", "dog"], []]):
        (tmp_path / "own" / f"{number}.jpg").write_bytes(jpeg(20 * number))
        lines.append(json.dumps({"file_name": f"{number}.jpg", "labels": labels}))
    (tmp_path / "own" / "metadata.jsonl").write_text("\n".join(lines))
    batch, classes = load_clean(tmp_path / "own", size=8)
    assert classes == ("cat", "dog")
    assert batch.targets.tolist() == [[0, 1], [1, 1], [0, 0]]
    assert batch.inputs.shape == (3, 3, 8, 8)
    ordered, _ = load_clean(tmp_path / "own", size=8, classes=["dog", "fox", "cat"])
    assert ordered.targets.tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]
    write_parquet(tmp_path / "own.parquet", jpeg, [[0], [0, 1]])
    assert load_clean(tmp_path / "own.parquet", size=8)[0].targets.tolist() == [[1, 0], [1, 1]]
    torch.save({"images": torch.rand(4, 5, 5, 3), "labels": torch.eye(4)}, tmp_path / "own.pt")
    batch, classes = load_clean(tmp_path / "own.pt")
    assert batch.inputs.shape == (4, 3, 5, 5)
    assert torch.equal(batch.targets, torch.eye(4, dtype=torch.int64))
    assert classes == ("0", "1", "2", "3")


def test_load_clean_says_what_is_wrong(tmp_path):
    torch.save({"images": torch.rand(4, 5, 5, 3), "labels": torch.arange(4)}, tmp_path / "a.pt")
    with pytest.raises(BadData, match="rows of zeros and ones"):
        load_clean(tmp_path / "a.pt")
    torch.save({"images": torch.rand(4, 5, 5, 3), "labels": 2 * torch.eye(4)}, tmp_path / "b.pt")
    with pytest.raises(BadData, match="not all 0 and 1"):
        load_clean(tmp_path / "b.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileRefused, match=r"metadata\.jsonl"):
        load_clean(tmp_path / "empty")
    with pytest.raises(FileRefused, match="no clean data"):
        load_clean(tmp_path / "nothing.parquet")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(BadData, match=r"broken\.jpg"):
        decode([tmp_path / "broken.jpg"], size=4)


# ------------------------------------------------------------------------------------------------------- splits


def test_splits_keep_the_rare_classes_on_both_sides(generator):
    rows = (torch.rand(400, 5, generator=generator) < torch.tensor([0.6, 0.4, 0.3, 0.2, 0.05])).long()
    images = torch.arange(400.0)[:, None, None, None]
    made = splits(Batch(images, rows), None, tuple("abcde"), seed=3, clean_share=0.25, clean_count=None, flip=True)
    assert (len(made.test), len(made.clean), len(made.train)) == (80, 80, 240)
    places = torch.cat([part.inputs.flatten() for part in (made.train, made.clean, made.test)])
    assert torch.equal(places.sort().values, torch.arange(400.0))
    rare = [int(part.targets[:, 4].sum()) for part in (made.train, made.clean, made.test)]
    total = int(rows[:, 4].sum())
    assert rare[1] == pytest.approx(0.2 * total, abs=1.01)
    assert rare[2] == pytest.approx(0.2 * total, abs=1.01)
    with pytest.raises(BadData, match="class names"):
        splits(Batch(images, rows), None, ("a",), seed=3, clean_share=None, clean_count=None, flip=True)


def test_kit_offers_every_loader():
    assert set(KIT.data) == {"coco", "digits", "hub", "parquet", "voc"}
