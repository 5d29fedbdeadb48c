"""Finding config files, and joining them with their `default.yml`.

A name means the file of the B-Hive checkout that `$B_HIVE_DIR` points to, when it has one, else the shipped one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bhive_mltf.config.keys import modernised
from bhive_mltf.config.reading import build
from bhive_mltf.config.schema import Config
from bhive_mltf.config.settings import Settings
from bhive_mltf.config.yaml_file import find_named, names_in, read_mapping
from bhive_mltf.errors import ConfigError, nearest

DEFAULT = "default.yml"


def own_folder() -> Path | None:
    """Our own configs: `bhive_mltf/configs/` of an installed library, `configs/` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "configs", package.parent / "configs")
    return next((folder for folder in folders if (folder / DEFAULT).is_file()), None)


def folders() -> tuple[Path, ...]:
    """Where configs are looked for by name, first match wins: `$B_HIVE_DIR/config`, then ours."""
    own, upstream = own_folder(), os.environ.get("B_HIVE_DIR")
    return (*([Path(upstream) / "config"] if upstream else []), *([own] if own else []))


def available() -> tuple[str, ...]:
    """Names that `load` knows."""
    return names_in(folders())


def load(name_or_path: str, *, strict: bool = False) -> Config:
    """Read, merge and check a config.

    Parameters
    ----------
    name_or_path : `hlt_run3`, or a path of a file that ends in .yml or has a separator.
    strict : whether a key that nothing reads is an error, and not a warning.

    Raises
    ------
    ConfigError
        There is no such config, or something in it cannot be.
    """
    path = find(name_or_path)
    values, warnings = _settings_of(path)
    warnings = _taken(path) + warnings
    origins = dict.fromkeys(values, str(path))
    default = _default_for(path)
    if default is not None:
        base, base_warnings = _settings_of(default)
        values = {**base, **values}
        origins = {**dict.fromkeys(base, str(default)), **origins}
        warnings = base_warnings + warnings
    return build(Settings(path.stem, str(path), values, origins, warnings, strict))


def require_complete(config: Config) -> None:
    """Refuse a bare `default.yml`, the only config that may lack a tree, where one is needed."""
    if not config.treename:
        names = ", ".join(name for name in available() if name != config.name) or "none"
        raise ConfigError(f"config {config.source} names no tree: it is the base of the others; choose one of {names}")


def find(name_or_path: str) -> Path:
    """The file of a config; ConfigError with the searched folders when there is none."""
    text = name_or_path.strip()
    found = find_named(text, folders())
    if found is None:
        raise ConfigError(_not_found(text, Path(os.path.expandvars(text)).expanduser()))
    return found


def _taken(path: Path) -> list[str]:
    """Which file a name means, for those who have a checkout of B-Hive too."""
    upstream = os.environ.get("B_HIVE_DIR")
    folder = Path(upstream) / "config" if upstream else None
    if folder is None or not folder.is_dir():
        return []
    if path.parent == folder:
        return [f"config {path.stem}: {path} of the checkout in B_HIVE_DIR is taken"]
    if path.parent == own_folder():
        return [f"config {path.stem}: {path} is taken, since {folder} has none of this name"]
    return []


def _not_found(text: str, path: Path) -> str:
    if len(path.parts) > 1:
        return f"there is no config file {text}; give an existing path, or one of the names {', '.join(available())}"
    searched = " and ".join(map(str, folders())) or "no folder"
    hint = "" if os.environ.get("B_HIVE_DIR") else " (B_HIVE_DIR is not set)"
    names = ", ".join(nearest(path.stem, available())) or "none"
    return f"there is no config {text!r} in {searched}{hint}; nearest: {names}; or give the path of a file"


def _default_for(path: Path) -> Path | None:
    """`default.yml` of the same folder, else ours; none for a default itself."""
    if path.name == DEFAULT:
        return None
    beside, own = path.parent / DEFAULT, own_folder()
    if beside.is_file():
        return beside
    return own / DEFAULT if own else None


def _settings_of(path: Path) -> tuple[dict[str, Any], list[str]]:
    return modernised(read_mapping(path), str(path))
