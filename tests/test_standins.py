"""What lies in a file's place without being it is named as that, for every format, with what to do."""

import bz2
import gzip
import lzma

import numpy as np
import pytest
from refusals import refused

from mmdma_core import MMDMA
from mmdma_core.files.annotated import ANNOTATED
from mmdma_core.files.formats import READERS
from mmdma_core.files.io import read_match, read_view

SUFFIXES = [*(suffix for suffix in ANNOTATED if suffix != ".zarr"), ".h5", *READERS]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"\xef\xbb\xbf\n <!DOCTYPE html>\n<html><body>Sign in</body></html>\n"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("content", "part"),
    [
        (LFS, "is a Git LFS pointer, not the file itself: git lfs pull"),
        (b"/annex/objects/SHA256E-s5--1.h5ad\n", "is a git-annex pointer, not the file itself: git annex get"),
        (PAGE, "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page or a server's message"),
        (b"", "is empty"),
        (bz2.compress(b"1,2\n3,4\n"), "is compressed with bzip2: unpack it"),
        (lzma.compress(b"1,2\n3,4\n"), "is compressed with xz: unpack it"),
        (b"\x28\xb5\x2f\xfd\x04\x58", "is compressed with zstd: unpack it"),
    ],
)
def test_every_format_names_it(tmp_path, suffix, content, part):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    refused(lambda: read_view(path, modality="rna" if suffix == ".h5mu" else None), f"{path} {part}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_gzip_and_its_suffix_go_together(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    modality = "rna" if suffix == ".h5mu" else None
    if suffix.endswith(".gz"):
        path.write_bytes(b"1,2\n3,4\n")
        refused(lambda: read_view(path), f"{path} ends in .gz and is not compressed with gzip: take .gz off its name")
    else:
        path.write_bytes(gzip.compress(b"1,2\n3,4\n"))
        refused(lambda: read_view(path, modality=modality), f"{path} is compressed with gzip: unpack it, or let its")


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".mtx", ".h5", ".h5ad"])
def test_a_zip_archive_in_the_place_of_text_or_hdf5(tmp_path, suffix):
    np.savez(tmp_path / "x.npz", x=np.ones((2, 2)))
    (tmp_path / "x.npz").rename(tmp_path / f"x{suffix}")
    refused(lambda: read_view(tmp_path / f"x{suffix}"), "is a zip archive, as .xlsx is too")


@pytest.mark.parametrize("suffix", [".csv.gz", ".tsv.gz", ".txt.gz", ".mtx.gz", ".h5ad.gz"])
@pytest.mark.parametrize("keep", [3, 15, -9, -4])
def test_gzip_that_is_cut_off(tmp_path, suffix, keep):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(b"1,2\n3,4\n")[:keep])
    refused(lambda: read_view(path), str(path), "cannot be read as a")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_links_that_lead_nowhere(tmp_path, suffix):
    path, other = tmp_path / f"x{suffix}", tmp_path / f"y{suffix}"
    path.symlink_to("../.git/annex/objects/Xx/1/SHA256E-s5--1/SHA256E-s5--1")
    refused(lambda: read_view(path), f"{path} is a link of git-annex whose file is not here: git annex get fetches it")
    other.symlink_to("gone.dat")
    refused(lambda: read_view(other), f"{other}: a link to gone.dat, where no file is")


def test_matches_and_models_too(tmp_path):
    (tmp_path / "match.txt").write_bytes(LFS)
    refused(lambda: read_match(tmp_path / "match.txt", 2, 2), "match.txt is a Git LFS pointer")
    (tmp_path / "model.npz").write_bytes(LFS)
    refused(lambda: MMDMA.load(tmp_path / "model.npz"), "model.npz is a Git LFS pointer")
    (tmp_path / "empty.npz").touch()
    refused(lambda: MMDMA.load(tmp_path / "empty.npz"), "empty.npz is empty")


@pytest.mark.parametrize("content", [np.array([[None, 1], [2, "a"]], object), np.zeros((2, 2), [("a", object)])])
def test_objects_are_refused_without_advice_to_unpickle(tmp_path, content):
    np.save(tmp_path / "x.npy", content, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=content)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match="holds Python objects, which could run code: save numbers") as caught:
            read_view(tmp_path / name)
        assert "pickle" not in str(caught.value)
    with pytest.raises(ValueError, match="holds Python objects") as caught:
        read_match(tmp_path / "x.npy", 2, 2)
    assert "pickle" not in str(caught.value)
