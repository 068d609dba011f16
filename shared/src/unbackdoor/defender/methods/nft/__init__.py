"""Neural mask fine-tuning (NFT)."""

from unbackdoor.defender.methods.nft.nft import NFT

__all__ = ["NFT"]
