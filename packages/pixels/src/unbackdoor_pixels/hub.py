"""Data sets of the Hugging Face Hub as tables; needs the package ``datasets`` and, the first time, a network."""

from __future__ import annotations

import importlib

from unbackdoor.attacker.vetting import may_fetch
from unbackdoor.errors import BadData, FileRefused, UntrustedVictim
from unbackdoor_pixels.tables import Pick, Records, records_of

__all__ = ["hub_records"]


def hub_records(name: str, split: str, pick: Pick, package: str) -> Records:
    """One part of a data set.

    Args:
        name: On the Hub, or a local folder that ``datasets`` can read.
        split: Name of the part.
        pick: From the names of all columns to those that are read.
        package: Whose extra ``hub`` brings ``datasets``, for the message.

    Raises:
        FileRefused: ``datasets`` is not installed, or it cannot load the data.
        BadData: The part is empty or cannot be read.
        TooLarge: It takes more than the limits allow.
    """
    if not may_fetch(name):
        raise UntrustedVictim(
            f"nothing is downloaded for a victim's card, which names the data set {name!a}; fetch it yourself and "
            "give --data-path (data_path=...)."
        )
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise FileRefused(
            f"loading {name} from the Hub needs the package datasets (pip install '{package}[hub]'); "
            "or give path=... to files that you have."
        ) from error
    try:
        part = datasets.load_dataset(name, split=split)
    except Exception as error:  # whatever its many parsers raise
        raise FileRefused(f"datasets cannot load {name!r}, part {split!r}: {error}") from error
    if part.num_rows == 0:
        raise BadData(f"{name!r} has no sample in part {split!r}.")
    return records_of(part.data.table.combine_chunks(), pick, f"{name} ({split})")
