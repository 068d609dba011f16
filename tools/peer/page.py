"""The page, made from the JSON alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_ALSO = ("nft", "f-fip")


def page(content: dict[str, Any], source: str) -> str:
    """Markdown."""
    victim = content["victim"]
    width = victim["model_options"].get("width")
    made = (
        f"Made by `tools/peer` from `docs/results/{source}`: {victim['model']}{f', width {width}' if width else ''} on "
        f"{victim['data']}, {victim['attack']} attack, {content['clean']} clean and {content['test']} test samples, "
        f"batches of {content['batch_size']}, one seed. The peer is commit `{content['commit'][:12]}` of "
        f"`{content['peer']}`; it and ours with its options (`matched`) take as many steps as its own configuration "
        f"does unless the command says otherwise. Times are {content['clock']}."
    )
    lines = [
        "# Beside BackdoorBench",
        "",
        made,
        "",
        "| method | side | steps | ACC | ASR | LCR | ms a step | seconds in all | chosen by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        figures = " | ".join(f"{row[key]:.1f}" if key in row else "" for key in ("accuracy", "asr", "lcr"))
        step, whole = (str(row.get(key) or "") for key in ("step_ms", "seconds"))
        chosen = row.get("selection", "clean samples" if row["side"] == "ours" else "")
        steps = content["steps"].get(row["method"], "") if row["side"] in ("peer", "ours, matched") else ""
        steps = row.get("options", {}).get("steps", steps)
        lines.append(f"| {row['method']} | {row['side']} | {steps} | {figures} | {step} | {whole} | {chosen} |")
    lines += ["", "Step times, peer's over ours with the peer's options; above 1 ours is quicker:", ""]
    for peer, mine in pairs(content["rows"], "ours, matched"):
        lines.append(f"- {peer['method']}: {peer['step_ms'] / mine['step_ms']:.2f}")
    lines += ["", WHOLE, "", "| peer | seconds | nft | f-fip |", "|---|---|---|---|"]
    also = {row["method"]: row for row in content["rows"] if row["side"] == "ours" and row["method"] in _ALSO}
    for peer in (row for row in content["rows"] if row["side"] == "peer"):
        chosen = f" ({peer['selection']})" if peer["method"] == "anp" else ""
        told = [compared(peer, also[name]) if name in also else "" for name in _ALSO]
        lines.append(f"| {peer['method']}{chosen} | {peer['seconds']:.0f} | {' | '.join(told)} |")
    lines += ["", "What is not alike:", "", *(f"- {name}: {what}." for name, what in content["unlike"].items()), ""]
    return "\n".join(lines)


WHOLE = (
    "Whole runs: how many times as long as ours with defaults, choice of strength included, the peer took; and how "
    "many points ours lies below its ASR and above its ACC (less than 0: worse):"
)


def compared(peer: dict[str, Any], mine: dict[str, Any]) -> str:
    """A cell."""
    ratio = peer["seconds"] / mine["seconds"]
    return f"{ratio:.1f} times; ASR {peer['asr'] - mine['asr']:+.1f}, ACC {mine['accuracy'] - peer['accuracy']:+.1f}"


def pairs(rows: list[dict[str, Any]], side: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The peer's first row of each method with ours on ``side``."""
    seen = set()
    for peer in (row for row in rows if row["side"] == "peer"):
        for mine in (row for row in rows if row["side"] == side and row["method"] == peer["method"]):
            if peer["method"] not in seen and peer.get("step_ms") and mine.get("step_ms"):
                seen.add(peer["method"])
                yield peer, mine
