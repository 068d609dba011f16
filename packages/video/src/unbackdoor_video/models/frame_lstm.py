"""The papers' network for actions: a CNN on every frame, an LSTM over its features, a linear classifier."""

from __future__ import annotations

from torch import Tensor, nn

from unbackdoor.errors import BadOption

__all__ = ["POOLS", "FrameLSTM"]

POOLS = ("mean", "last")


class FrameLSTM(nn.Module):
    """CNN + LSTM (NFT Sec. 5.2, FIP A.3): ``logits = W h + b`` with ``h`` the mean or the last of the LSTM's states.

    Args:
        encoder: From frames ``(n, channels, h, w)`` to features ``(n, encoder.features)``.
        num_classes: Number of logits.
        hidden: Hidden units of the LSTM in each direction.
        layers: Of the LSTM.
        bidirectional: Whether a second LSTM runs from the last frame to the first.
        dropout: Before the LSTM and before the classifier.
        pool: ``"mean"`` over all frames or ``"last"``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        *,
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pool: str = "mean",
    ) -> None:
        """Build the layers with PyTorch's default initialisation.

        Raises:
            BadOption: ``pool`` is not known.
        """
        super().__init__()
        if pool not in POOLS:
            raise BadOption(f"pool is {pool!r}; it must be one of {', '.join(POOLS)}.")
        self.encoder = encoder
        features = int(encoder.features)  # type: ignore[arg-type]
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), num_classes)
        self.pool = pool

    def forward(self, clips: Tensor) -> Tensor:
        """Clips ``(batch, frames, channels, h, w)`` to logits ``(batch, num_classes)``."""
        features = self.encoder(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        states, _ = self.lstm(self.drop(features))
        summary = states.mean(dim=1) if self.pool == "mean" else states[:, -1]
        logits: Tensor = self.head(self.drop(summary))
        return logits
