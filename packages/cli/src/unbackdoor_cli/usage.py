"""What is said of words that the command line does not take: in one manner, whichever library noticed."""

from __future__ import annotations

from typing import Any

__all__ = ["flags_of", "keys_of", "usage_text"]


def usage_text(error: Any) -> str:
    """The message of an error of the library of the command line; a flag that is not known gets a suggestion."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "MissingParameter" and context is not None:
        return _missing(error, context)
    if type(error).__name__ != "NoSuchOption" or context is None:
        text = str(error.format_message())
        return text.replace("Input should be", "it must be").replace("Value error, ", "")
    from unbackdoor_cli.options import meant

    given, keyed = str(error.option_name), "data_option" in {parameter.name for parameter in context.command.params}
    task = context.params.get("task", "image")
    hint = meant(given, flags_of(context), lambda: keys_of(task) if keyed else [])
    return f"no such flag: {given}{hint}. All flags: unbackdoor {context.info_name} --help."


def _missing(error: Any, context: Any) -> str:
    """That something has to be given; a word that may have been meant as it is named."""
    from unbackdoor.spelling import near

    text = str(error.format_message()).replace("Missing option", "missing flag").replace("Missing arg", "missing arg")
    words = context.find_root().obj
    given = {word.partition("=")[0] for word in words or () if str(word).startswith("--")} - set(flags_of(context))
    found = [word for flag in getattr(error.param, "opts", ()) for word in near(flag, sorted(given))]
    return f"{text} (did you mean {error.param.opts[0]} by {found[0]}?)" if found else text


def flags_of(context: Any) -> list[str]:
    """Every flag of the command."""
    return [
        name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    ]  # fmt: skip


def keys_of(task: str) -> list[str]:
    """Options of the task's data reader, of the task and of its models, as they are typed: ``--data-option fit=``."""
    from unbackdoor.errors import UnbackdoorError
    from unbackdoor.registry import kit as kit_of
    from unbackdoor_cli.options import takes

    try:
        kit = kit_of(task)
    except UnbackdoorError:
        return []
    owners = {"--data-option": kit.load_clean, "--task-option": kit.task, "--model-option": kit.build}
    return [f"{flag} {name}=" for flag, owner in owners.items() for name in takes(owner)]
