"""Neural mask fine-tuning (NFT)."""

from unbackdoor.methods.nft.nft import NFT

__all__ = ["NFT"]
