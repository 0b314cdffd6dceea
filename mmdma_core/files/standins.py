"""What lies in a file's place without being it: pointers of git, web pages, nothing at all, another compression."""

from __future__ import annotations

import os
from pathlib import Path

_POINTERS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: git lfs pull fetches it",
    b"version https://hawser": "is a Git LFS pointer, not the file itself: git lfs pull fetches it",
    b"/annex/objects/": "is a git-annex pointer, not the file itself: git annex get fetches it",
}
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error>")
_GZIP = b"\x1f\x8b"
_COMPRESSED = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z"}
_ZIP, _ARE_ZIP = b"PK\x03\x04", (".npy", ".npz", ".pt")  # of .npy, that it is an .npz is said elsewhere


def check_is_there(path: Path) -> None:
    """Raises ValueError for no file; a link that leads nowhere is named as that."""
    if path.is_file():
        return
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a file")
    if not path.is_symlink():
        raise ValueError(f"{path}: no such file")
    target = os.readlink(path)
    if "annex/objects" in target.replace(os.sep, "/"):
        raise ValueError(f"{path} is a link of git-annex whose file is not here: git annex get fetches it")
    raise ValueError(f"{path}: a link to {target}, where no file is")


def check_is_itself(path: Path) -> None:
    """Raises ValueError of one line for a file that only stands for another one, or is packed as its name does not say.

    What it says is seen from the first bytes alone.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    what = _seen(path, head)
    if what:
        raise ValueError(f"{path} {what}")


def _seen(path: Path, head: bytes) -> str | None:
    if not head:
        return "is empty"
    for start, what in _POINTERS.items():
        if head.startswith(start):
            return what
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return "is a web page or a server's message, not the file itself: download it again, by its own address"
    for start, name in _COMPRESSED.items():
        if head.startswith(start):
            return f"is compressed with {name}: unpack it"
    if head.startswith(_ZIP) and path.suffix.lower() not in _ARE_ZIP:
        return "is a zip archive, as .xlsx is too: unpack it, or save it as text"
    named = path.suffix.lower() == ".gz"
    if named and not head.startswith(_GZIP):
        return "ends in .gz and is not compressed with gzip: take .gz off its name"
    if not named and head.startswith(_GZIP):
        return "is compressed with gzip: unpack it, or let its name end in .gz"
    return None
