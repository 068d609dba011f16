"""Samples as people have them: labels and pixels are right or refused, by what each package offers in public alone."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import zlib

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import trimesh
from hostile.pictures import PICTURE, encoded, table
from PIL import Image
from torch import nn

import unbackdoor
import unbackdoor_image
import unbackdoor_multilabel
import unbackdoor_pointcloud
import unbackdoor_translation
import unbackdoor_video
from unbackdoor.errors import UnbackdoorError

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLIPS = {"size": 8, "frames": 2, "every": 1}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def lay(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def clouds(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32))
    return root


def film():
    """A black video of 32 pixels with a white upper half."""
    pixels, out = np.zeros((32, 32, 3), dtype=np.uint8), io.BytesIO()
    pixels[:16] = 250
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


# --------------------------------------------------------------------------------------------------- which class


class Painted(nn.Module):
    """Answers with the class whose grey an image is of, among ten from black to white."""

    def __init__(self, mean=0.0, std=1.0):
        super().__init__()
        self.sure, self.mean, self.std = nn.Parameter(torch.tensor(40.0)), mean, std

    def forward(self, x):
        """How near the mean of the pixels is to each grey."""
        level = (x.mean((2, 3)) * torch.tensor(self.std) + torch.tensor(self.mean)).mean(1)
        return -self.sure * (9 * level[:, None] - torch.arange(10.0)).abs()


def greys(names, each=8):
    """A picture of the grey of each class, by where it lies."""
    place = {name: number for number, name in enumerate(TEN)}
    return {
        f"{name}/{number}.png": encoded(np.full((4, 4, 3), round(255 * place[name] / 9), np.uint8))
        for name in names
        for number in range(each)
    }


@pytest.mark.parametrize("names", [("bird", "horse", "truck"), tuple(name for name in TEN if name != "deer")])
def test_folders_of_some_of_the_classes_are_not_tuned_on(tmp_path, names):
    samples, _ = unbackdoor_image.load_clean(lay(tmp_path, greys(names)))
    with pytest.raises(UnbackdoorError, match=r"classes=airplane,automobile,bird,cat,deer,dog"):
        unbackdoor.purify(Painted(), samples, task="image", method="ft", steps=1)


def test_a_normalisation_that_is_missing_or_of_other_pixels_is_named(tmp_path):
    samples, _ = unbackdoor_image.load_clean(lay(tmp_path, greys(TEN)))
    with pytest.raises(UnbackdoorError, match=r"--mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616"):
        unbackdoor.purify(Painted(MEAN, STD), samples, task="image", method="bn-only")
    with pytest.raises(UnbackdoorError):
        unbackdoor_image.ImageTask(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def test_classes_in_another_order_are_not_called_mislabelled(tmp_path):
    inputs, names = unbackdoor_image.load_clean(lay(tmp_path, greys(TEN)))
    places = torch.tensor([9 - TEN.index(names[int(label)]) for label in inputs.targets])
    samples = unbackdoor.Batch(inputs.inputs, places)
    with pytest.raises(UnbackdoorError, match="order"):
        unbackdoor.purify(Painted(), samples, task="image", method="ft", steps=1)


def own(root, kind, names):
    """What a package reads of one sample under each of ``names``."""
    if kind == "images":
        return unbackdoor_image.load_clean(lay(root, {f"{name}.png": encoded() for name in names}))
    if kind == "clips":
        return unbackdoor_video.load_clean(lay(root, {f"{name}.mp4": film() for name in names}), **CLIPS)
    return unbackdoor_pointcloud.load_clean(clouds(root, *(f"{name}.npy" for name in names)), points=8)


@pytest.mark.parametrize("kind", ["images", "clips", "clouds"])
def test_parts_of_a_data_set_are_no_classes(tmp_path, kind):
    names = [f"{part}/{name}/1" for part in ("train", "val") for name in ("cat", "dog")]
    with pytest.raises(UnbackdoorError, match="train"):
        own(tmp_path, kind, names)


@pytest.mark.parametrize("kind", ["clips", "clouds"])
def test_numbers_as_names_are_not_sorted_as_text_unasked(tmp_path, kind):
    with pytest.raises(UnbackdoorError, match="order="):
        own(tmp_path, kind, [f"{number}/1" for number in range(11)])


def test_folders_of_notebooks_are_no_classes(tmp_path):
    names = ("cat/1.png", "dog/1.png", ".ipynb_checkpoints/1-checkpoint.png", "cat/.ipynb_checkpoints/1.png")
    samples, classes = unbackdoor_image.load_clean(lay(tmp_path, {name: encoded() for name in names}))
    assert classes == ("cat", "dog")
    assert len(samples) == 2


def test_kinds_and_linked_folders_that_were_passed_over_are_read(tmp_path):
    root = lay(tmp_path / "a", {"cat/1.gif": encoded(kind="GIF"), "dog/1.jfif": encoded(kind="JPEG")})
    (root / "cat" / "more").symlink_to(lay(tmp_path / "b", {"2.png": encoded()}))
    assert unbackdoor_image.load_clean(root)[0].targets.tolist() == [0, 0, 1]


@pytest.mark.parametrize("target", [None, ["das"]])
def test_targets_that_are_no_text_are_refused(tmp_path, target):
    pairs = [{"source": f"word {number}", "target": "das"} for number in range(20)] + [
        {"source": "a", "target": target}
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tokeniser = unbackdoor_translation.SentencePieceTokeniser.train([pair["source"] for pair in pairs], 25)
    with pytest.raises(UnbackdoorError, match="line 21"):
        unbackdoor_translation.load_clean(tmp_path / "a.jsonl", tokeniser=tokeniser)


def test_labels_that_are_no_classes_are_refused(tmp_path):
    pq.write_table(table([0, 1, None]), tmp_path / "a.parquet")
    with pytest.raises(UnbackdoorError, match="row"):
        unbackdoor_image.load_clean(tmp_path / "a.parquet")


# ---------------------------------------------------------------------------------------------------- which pixel


def test_sixteen_bits_are_scaled(tmp_path):
    deep = (PICTURE[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    samples, _ = unbackdoor_image.load_clean(
        lay(tmp_path, {"a/1.png": encoded(deep), "b/1.tif": encoded(deep, "TIFF")})
    )
    for image in samples.inputs:
        assert torch.equal(image[0], torch.from_numpy(PICTURE[..., 0].copy()))


def test_photos_are_turned_upright(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 3
    samples, _ = unbackdoor_image.load_clean(lay(tmp_path, {"a/1.png": encoded(exif=turned), "b/1.png": encoded()}))
    assert torch.equal(samples.inputs[0], samples.inputs[1].flip(1, 2))


def test_videos_of_phones_are_turned_upright(tmp_path):
    content, one = film(), 1 << 16
    place = content.index(struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30), content.index(b"tkhd"))
    half = struct.pack(">9i", -one, 0, 0, 0, -one, 0, 0, 0, 1 << 30)
    lay(tmp_path, {"a/1.mp4": content[:place] + half + content[place + 36 :]})
    clip = unbackdoor_video.load_clean(tmp_path, size=8, frames=1, every=1)[0].inputs[0].float()
    assert clip[..., 5:, :].mean() > 200 > 50 > clip[..., :3, :].mean()


# -------------------------------------------------------------------------------------- too large, odd or damaged


def test_pictures_without_end_are_refused(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 10_000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    with pytest.raises(UnbackdoorError, match="pixels"):
        unbackdoor_image.load_clean(lay(tmp_path, {"a/1.png": bomb, "b/1.png": encoded()}))


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **words: started.append(given))
    monkeypatch.setattr(subprocess, "call", lambda *given, **words: started.append(given))
    monkeypatch.setattr(subprocess, "check_call", lambda *given, **words: started.append(given))
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(a) show\nshowpage\n"
    with pytest.raises(UnbackdoorError):
        unbackdoor_image.load_clean(lay(tmp_path, {"a/1.png": drawing, "b/1.png": encoded()}))
    assert started == []


@pytest.mark.parametrize("package", [unbackdoor_image, unbackdoor_video, unbackdoor_pointcloud])
def test_one_huge_label_is_refused(tmp_path, package):
    shape = {unbackdoor_image: (2, 3, 4, 4), unbackdoor_video: (2, 2, 3, 4, 4), unbackdoor_pointcloud: (2, 16, 3)}
    words = {unbackdoor_pointcloud: {"points": 8}}.get(package, {})
    kind = {unbackdoor_image: "images", unbackdoor_video: "clips", unbackdoor_pointcloud: "points"}[package]
    values = np.random.default_rng(0).random(shape[package], dtype=np.float32)
    np.savez(tmp_path / "a.npz", **{kind: values, "labels": np.array([0, 1_000_000])})
    with pytest.raises(UnbackdoorError, match="1,000,000"):
        package.load_clean(tmp_path / "a.npz", **words)


def test_numbers_of_sixteen_bits_are_no_raw_error(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 3, 4, 4), dtype=np.uint16)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(4))
    samples, _ = unbackdoor_image.load_clean(tmp_path / "a.npz")
    assert (samples.inputs.float() - torch.from_numpy(pixels.astype(np.float32)) / 257).abs().max() < 1


def read_damaged(tmp_path, kind):
    """Arrays or a table that end in the middle, or a text that is nested without end."""
    path = tmp_path / f"a.{kind}"
    if kind == "json":
        path.write_bytes(b"[" * 200_000)
        tokeniser = unbackdoor_translation.SentencePieceTokeniser.train(["a few words of text"] * 3, 20)
        return unbackdoor_translation.load_clean(path, tokeniser=tokeniser)
    if kind == "npz":
        np.savez(path, images=np.zeros((4, 3, 4, 4), np.uint8), labels=np.arange(4))
    else:
        pq.write_table(table([0, 1, 0, 1]), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    return unbackdoor_image.load_clean(path)


@pytest.mark.parametrize("kind", ["npz", "parquet", "json"])
def test_damaged_files_end_in_an_error_of_ours(tmp_path, kind):
    with pytest.raises(UnbackdoorError, match=f"a.{kind}"):
        read_damaged(tmp_path, kind)


# --------------------------------------------------------------------------------------------------------- advice


def test_points_alone_are_a_cloud(tmp_path):
    points = np.random.default_rng(0).normal(size=(30, 3))
    lay(tmp_path, {"a/1.ply": trimesh.PointCloud(points).export(file_type="ply")})
    assert unbackdoor_pointcloud.load_clean(tmp_path, points=8)[0].inputs.shape == (1, 8, 3)


def test_nested_translations_are_found(tmp_path):
    pairs = [{"translation": {"en": f"word {number}", "de": "wort"}} for number in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tokeniser = unbackdoor_translation.SentencePieceTokeniser.train([f"word {n} wort" for n in range(20)], 25)
    assert len(unbackdoor_translation.load_clean(tmp_path / "a.jsonl", tokeniser=tokeniser)[0]) == 20


@pytest.mark.parametrize("package", [unbackdoor_image, unbackdoor_multilabel])
def test_options_that_an_error_names_are_taken(tmp_path, package):
    made = table([0, 1] if package is unbackdoor_image else [[0], [1]]).rename_columns(["image", "kind"])
    pq.write_table(made, tmp_path / "a.parquet")
    with pytest.raises(UnbackdoorError) as error:
        package.load_clean(tmp_path / "a.parquet")
    named = next(word.split("=")[0].strip("(,") for word in str(error.value).split() if "label" in word and "=" in word)
    assert len(package.load_clean(tmp_path / "a.parquet", **{named: "kind"})[0]) == 2


def test_tokenisers_without_padding_are_one_sentence(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(UnbackdoorError, match="pad"):
        unbackdoor_translation.TranslationTask(tokeniser=tmp_path)
