"""Train a small Transformer with fairseq itself and write its checkpoint and some of its answers.

Runs in an environment of its own (CPython 3.10, torch 1.12.1, fairseq 0.12.2), which ``nox -s fairseq`` makes. The
folder that it writes is what ``tests/packages/translation/test_fairseq.py`` reads.

    python tools/fairseq_checkpoint.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

NUMBERS = ("one two three four five six seven eight nine ten", "eins zwei drei vier fünf sechs sieben acht neun zehn")


def main(folder: Path) -> None:
    """Write ``checkpoint_last.pt`` and ``answers.pt`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder)
    prepare(folder)
    train(folder)
    answer(folder)


def write_text(folder: Path) -> None:
    """Forty pairs of number words."""
    words = [side.split() for side in NUMBERS]
    rows = [[(7 * i + 3 * k * k) % 10 for k in range(2 + i % 5)] for i in range(40)]
    for language, names in zip(("en", "de"), words, strict=True):
        lines = "\n".join(" ".join(names[i] for i in row) for row in rows)
        (folder / f"train.{language}").write_text(lines + "\n", encoding="utf-8")


def prepare(folder: Path) -> None:
    """fairseq-preprocess with one dictionary for both sides."""
    from fairseq_cli import preprocess

    sys.argv = ["preprocess", "-s", "en", "-t", "de", "--joined-dictionary", "--workers", "1"]
    sys.argv += ["--trainpref", str(folder / "train"), "--validpref", str(folder / "train")]
    sys.argv += ["--destdir", str(folder / "binary")]
    preprocess.cli_main()


def train(folder: Path) -> None:
    """fairseq-train for twenty updates, tied embeddings, dropout off."""
    from fairseq_cli import train as trainer

    sys.argv = ["train", str(folder / "binary"), "--arch", "transformer_tiny", "--share-all-embeddings", "--cpu"]
    sys.argv += ["--optimizer", "adam", "--lr", "0.005", "--max-update", "20", "--max-tokens", "400", "--dropout", "0"]
    sys.argv += ["--save-dir", str(folder), "--no-epoch-checkpoints", "--seed", "0", "--log-format", "none"]
    trainer.cli_main()


def answer(folder: Path) -> None:
    """What fairseq's own model says of a few sentences."""
    import torch
    from fairseq import checkpoint_utils

    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(folder / "checkpoint_last.pt")])
    model, words = models[0].eval(), task.source_dictionary
    source = torch.stack([words.encode_line("one two three four", add_if_not_exist=False).long()] * 2)
    source[1, 0] = words.index("nine")
    prefix = torch.cat([torch.full((2, 1), words.eos()), source[:, :-1]], dim=1)
    with torch.no_grad():
        logits, _ = model(source, torch.tensor([source.shape[1]] * 2), prefix)
    torch.save({"source": source, "prefix": prefix, "logits": logits}, folder / "answers.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
