"""The clean model that an attacker works against: trained here on the training clips, or given."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from unbackdoor.builders import seeded
from unbackdoor.task import Batch
from unbackdoor_pixels import as_floats
from unbackdoor_video.augment import move
from unbackdoor_video.models.encoders import SmallEncoder
from unbackdoor_video.models.frame_lstm import FrameLSTM

__all__ = ["make_surrogate", "train_surrogate"]


def make_surrogate(channels: int, height: int, num_classes: int, width: int) -> FrameLSTM:
    """CNN + LSTM of the shape that fits frames of ``height`` pixels, with weights from the global generator."""
    depth, grid = (4, 4) if height >= 32 else (3, 2)
    return FrameLSTM(SmallEncoder(channels, width, depth, grid), num_classes, hidden=128)


def train_surrogate(
    data: Batch,
    num_classes: int,
    generator: torch.Generator,
    *,
    steps: int,
    width: int = 16,
    batch_size: int = 16,
) -> FrameLSTM:
    """A classifier of clean clips, in eval mode and without gradients of its weights.

    Args:
        data: Clips and class indices.
        num_classes: Number of logits.
        generator: Of weights, order and random moves.
        steps: Of AdamW with a one-cycle schedule.
        width: Channels of its first convolution.
        batch_size: Clips a step.
    """
    device, (channels, height) = data.inputs.device, data.inputs.shape[2:4]
    with seeded(int(torch.randint(2**31, (), generator=generator))):
        model = make_surrogate(channels, height, num_classes, width)
    model.to(device).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = OneCycleLR(optimiser, 2e-3, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False)
    size, order = min(batch_size, len(data)), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(data), generator=generator)
        batch, order = data[order[:size].to(device)], order[size:]
        clips = as_floats(move(batch.inputs, generator, crop=height // 8 if height >= 16 else 0))
        loss = functional.cross_entropy(model(clips), batch.targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
