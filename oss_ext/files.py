"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, to write to; renamed over `path` on leaving.

    On an exception (Ctrl-C too) the temporary file is removed and `path` stays as it was.
    Raises ValueError where `path` is a folder, FileNotFoundError where its folder is missing, before the body runs.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{target}: is a folder, wanted the path of a file")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"{target}: its folder does not exist")
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(6)}.tmp{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path` to write into; its files take their places in `path` on leaving.

    A new `path` appears by one rename; in one that exists each file is replaced by a rename, others stay.
    On an exception (Ctrl-C too) the temporary folder is removed and `path` stays as it was.
    Raises ValueError where `path` is a file, FileNotFoundError where its folder is missing, before the body runs.
    """
    target = Path(path).absolute()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{path}: is a file, wanted the path of a folder")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: its parent folder does not exist")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            _merge(temporary, target)
        else:
            os.rename(temporary, target)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _merge(source: Path, target: Path) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
