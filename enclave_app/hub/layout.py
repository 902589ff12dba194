"""
Which files of a repository are the rows to train on: by what its card says, else by the hub's conventions.

Only the repository's own list of files is chosen from, whatever a card says. A repository that carries code,
or pickles, is refused as a whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, Final

from ..refusals import Refusal, listed, nearest

CARD: Final = "README.md"
MOST_FILES: Final = 100_000
_MOST_CONFIGS: Final = 2000
_MOST_OF_CONFIGS: Final = 128 << 10  # characters
_MOST_PATTERNS: Final = 1000
_LONGEST_PATTERN: Final = 500
_MOST_COMPARED: Final = 2_000_000  # names with parts of patterns
_CODE: Final = (".py", ".pyc", ".pyd", ".so", ".dll", ".pth", ".pt", ".pkl", ".pickle", ".joblib", ".sh")
_FORMS: Final = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
_NO_ROWS: Final = {
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}
_WORDS: Final = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD: Final = re.compile(r"data/([^/]+)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")

_Split = Callable[[str], str | None]


def checked(paths: Sequence[str]) -> None:
    """Refuse a repository that carries what could run (threats.md S-18), or what is no path."""
    if len(paths) > MOST_FILES:
        raise _unsafe(f"The data set has more than {MOST_FILES} files.")
    for path in paths:
        parts = path.split("/")
        if not path.isprintable() or "\\" in path or len(path) > 1000 or {"", ".", ".."} & set(parts):
            raise _unsafe("The data set has a file whose name leads out of it, or cannot be written.")
        if path.casefold().endswith(_CODE):
            raise _unsafe(
                "The data set carries a script or a pickle, and neither is ever run here: such data sets are "
                "not read at all."
            )


def chosen(paths: Sequence[str], card: bytes, config: str | None) -> list[str]:
    """The files with the rows to train on, in their order; raises `Refusal`."""
    data = [path for path in paths if _is_data(path)]
    if not data:
        raise Refusal(
            "The data set has no Parquet, JSON or CSV files. Upload its rows as a file.",
            code="invalid_file_format",
            param="dataset_name",
        )
    said = _configs(card)
    if said:
        found = _by_card(data, said, config)
    elif config in (None, "default"):
        found = _train(data)
    else:
        found = _train(_under(data, str(config)))
    forms = Counter(_FORMS[PurePosixPath(path).suffix.casefold()] for path in found)
    form = max(forms, key=lambda name: (forms[name], -list(_FORMS.values()).index(name)))
    return sorted(path for path in found if _FORMS[PurePosixPath(path).suffix.casefold()] == form)


def _is_data(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return (
        PurePosixPath(path).suffix.casefold() in _FORMS
        and parts[-1] not in _NO_ROWS
        and not any(part.startswith((".", "__")) for part in parts)
    )


# --- by convention ----------------------------------------------------------------------------


def _train(data: Sequence[str]) -> list[str]:
    """The files of the split "train": by the first convention that any file follows."""
    ways: tuple[_Split, ...] = (_by_shard, _by_folder, _by_name)
    for way in ways:
        splits = {path: split for path in data if (split := way(path)) is not None}
        if splits:
            found = [path for path, split in splits.items() if split == "train"]
            if not found:
                raise _no_train(sorted(set(splits.values())))
            return found
    return list(data)  # nothing is said of splits: all of it


def _by_shard(path: str) -> str | None:
    match = _SHARD.fullmatch(path)
    return match[1] if match else None


def _by_folder(path: str) -> str | None:
    return _first(split for part in path.split("/")[:-1] if (split := _word_in(part)))


def _by_name(path: str) -> str | None:
    return _word_in(path.rpartition("/")[2])


def _word_in(name: str) -> str | None:
    """The split that a name names: its word stands alone, between anything that is no letter."""
    words = re.split(r"[-._ 0-9]+", name)
    return _first(split for split, known in _WORDS.items() if any(word in known for word in words))


def _first(found: Iterable[str]) -> str | None:
    return next(iter(found), None)


def _under(data: Sequence[str], config: str) -> list[str]:
    """A configuration that is a folder."""
    for folder in (f"{config}/", f"data/{config}/"):
        found = [path for path in data if path.startswith(folder)]
        if found:
            return found
    raise _unknown(config, sorted({path.split("/")[0] for path in data if "/" in path} | {"default"}))


# --- by the card ------------------------------------------------------------------------------


def _configs(card: bytes) -> dict[str, Mapping[str, Any]]:
    """The configurations that a card lists at its head, by name."""
    text = card.decode("utf-8", "replace").lstrip("\ufeff").replace("\r\n", "\n")
    head = re.match(r"---\n(.*?\n)---(?:\n|$)", text, re.DOTALL)
    # The rest of a head can be long, and takes its time to read.
    part = re.search(r"^configs:.*\n(?:[-# ].*\n|\n)*", head[1], re.MULTILINE) if head else None
    if part is None:
        return {}
    if len(part[0]) > _MOST_OF_CONFIGS:
        raise _unreadable_card()
    import yaml

    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        """Without aliases: a few of them, each of the ones before, are a list without end."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError
            return super().compose_node(parent, index)

    try:
        told = yaml.load(part[0], Loader=Plain)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _unreadable_card() from None
    configs = told.get("configs") if isinstance(told, dict) else None
    if configs is None:
        return {}
    if not isinstance(configs, list) or len(configs) > _MOST_CONFIGS:
        raise _unreadable_card()
    found: dict[str, Mapping[str, Any]] = {}
    for each in configs:
        name = each.get("config_name", "default") if isinstance(each, dict) else None
        if not isinstance(name, str):
            raise _unreadable_card()
        found[name] = each
    return found


def _by_card(data: Sequence[str], said: Mapping[str, Mapping[str, Any]], config: str | None) -> list[str]:
    if config is None:
        first = [name for name, each in said.items() if each.get("default") is True]
        config = next(iter(first), "default") if len(said) > 1 else next(iter(said))
        if config not in said:
            raise Refusal(
                f"The data set has several configurations. Name one as config_name: {listed(said)}.",
                code="unknown_config",
                param="config_name",
            )
    if config not in said:
        raise _unknown(config, list(said))
    each = said[config]
    folder = each.get("data_dir")
    if folder is not None:
        if not isinstance(folder, str):
            raise _unreadable_card()
        inside = folder.strip("./")
        data = [path for path in data if path.startswith(f"{inside}/")] if inside else data
    if each.get("data_files") is None:
        if not data:
            raise _no_files(config)
        return _train(data)
    splits = _patterns(each["data_files"])
    if "train" not in splits:
        raise _no_train(sorted(splits))
    prefix = f"{str(folder).strip('./')}/" if folder and str(folder).strip("./") else ""
    wanted = [prefix + pattern.removeprefix("./") for pattern in splits["train"]]
    found = _matching(data, wanted)
    if not found:
        raise _no_files(config)
    return found


def _patterns(told: Any) -> dict[str, list[str]]:
    """A card's `data_files`, by split; what names no split is for training."""
    if isinstance(told, dict):
        told = [{"split": split, "path": path} for split, path in told.items()]
    found: dict[str, list[str]] = {}
    for each in told if isinstance(told, list) else [told]:
        split, paths = (each.get("split"), each.get("path")) if isinstance(each, dict) else ("train", each)
        for path in paths if isinstance(paths, list) else [paths]:
            if not isinstance(split, str) or not isinstance(path, str) or len(path) > _LONGEST_PATTERN:
                raise _unreadable_card()
            found.setdefault(split, []).append(path)
    if sum(map(len, found.values())) > _MOST_PATTERNS or any(
        pattern.split("/").count("**") > 2 for each in found.values() for pattern in each
    ):
        raise _unreadable_card()
    return found


def _matching(paths: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """`*` stands for anything within a name, `**` for any folders. What would take for ever is refused."""
    left = _MOST_COMPARED

    def rest(names: list[str], parts: list[str]) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise _unreadable_card()
        if not parts:
            return not names
        if parts[0] == "**":
            if len(parts) == 1:
                return bool(names)
            return any(rest(names[at:], parts[1:]) for at in range(len(names)))
        return bool(names) and fnmatchcase(names[0], parts[0]) and rest(names[1:], parts[1:])

    split = {path: path.split("/") for path in paths}
    found: set[str] = set()
    for pattern in patterns:
        if not set("*?[") & set(pattern):
            found |= {pattern} & split.keys()
            continue
        parts = pattern.split("/")
        found |= {path for path, names in split.items() if rest(names, parts)}
    return sorted(found)


# --- refusals ---------------------------------------------------------------------------------


def _unsafe(message: str) -> Refusal:
    return Refusal(f"{message} Upload its rows as a file.", code="unsafe_dataset", param="dataset_name")


def _unknown(config: str, there: Sequence[str]) -> Refusal:
    return Refusal(
        f"The data set has no such configuration.{nearest(config, there)} There are: {listed(there)}.",
        code="unknown_config",
        param="config_name",
    )


def _no_train(there: Sequence[str]) -> Refusal:
    return Refusal(
        f'The data set has no split "train", which is what is read. There are: {listed(there)}. Upload the '
        "rows you mean as a file.",
        code="missing_split",
        param="dataset_name",
    )


def _no_files(config: str) -> Refusal:
    return Refusal(
        f"The files of the configuration {listed([config])} are not there, or neither Parquet, JSON nor CSV. "
        "Upload its rows as a file.",
        code="invalid_file_format",
        param="config_name",
    )


def _unreadable_card() -> Refusal:
    return Refusal(
        f"What the data set's {CARD} says of its files cannot be understood. Upload its rows as a file.",
        code="invalid_file_format",
        param="dataset_name",
    )
