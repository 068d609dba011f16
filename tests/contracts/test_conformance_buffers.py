"""What the conformance kit says of buffers: those of BatchNorm may move, others come back or are found."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from unbackdoor.defender.methods.bn_only import BNOnly
from unbackdoor.testing import ClassificationTask, check_purifier, tiny_models

TINY = tiny_models()["conv-bn"]


class Counts(nn.Module):
    """Moves its buffer in its own forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("fixed", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x


def test_check_purifier_allows_buffers_to_move_only_in_batchnorm():
    @dataclass(frozen=True, kw_only=True)
    class MovesOthers(BNOnly):
        def _purify(self, model, clean, task, run):
            super()._purify(model, clean, task, run)
            model[-1].fixed += 1

    model = nn.Sequential(*TINY.build(), Counts()).eval()
    check_purifier(BNOnly(steps=2, batch_size=4), model, TINY.batch(), ClassificationTask())
    assert model[-1].seen == 0, "what the forward counts comes back"
    with pytest.raises(AssertionError, match="fixed"):
        check_purifier(MovesOthers(steps=2, batch_size=4), model, TINY.batch(), ClassificationTask())
