"""Caches: a package keeps its own folder where that can be used; where not, one is found, safe, inherited and told."""

import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

from mmdma_core import host

VARIABLES = ("NUMBA_CACHE_DIR", "KEOPS_CACHE_FOLDER", "TRITON_CACHE_DIR", "MPLCONFIGDIR")
OTHERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A user's home, temporary folder and install in one place, with no variable set."""
    for name in VARIABLES + OTHERS:
        monkeypatch.setenv(name, "")  # so that what is set is taken back at the end
        monkeypatch.delenv(name)
    for name in ("home", "tmp", "install"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()  # nobody, root included, can make a folder in it
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(host, "__file__", str(tmp_path / "install" / "caches.py"))
    yield tmp_path
    host.discard_caches()


def moved():
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def read_only(place, monkeypatch, install=True):
    monkeypatch.setenv("HOME", str(place / "file" / "home"))
    if install:
        monkeypatch.setattr(host, "__file__", str(place / "file" / "caches.py"))


def test_where_all_can_be_written_nothing_is_set_said_or_made(place, caplog):
    host.prepare_caches()
    assert moved() == {}
    assert not caplog.records
    assert not list((place / "home").iterdir())
    assert not list((place / "tmp").iterdir())


def test_a_job_of_a_cluster_compiles_into_a_folder_of_its_own(place, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    host.prepare_caches()
    (folder,) = (place / "tmp").iterdir()
    assert moved() == {"KEOPS_CACHE_FOLDER": str(folder / "keops")}
    monkeypatch.setenv("KEOPS_CACHE_FOLDER", str(place / "home"))
    host.discard_caches()
    host.prepare_caches()
    assert moved() == {"KEOPS_CACHE_FOLDER": str(place / "home")}  # what is named is kept


def test_where_nothing_can_be_written_all_share_one_new_folder(place, monkeypatch, caplog):
    read_only(place, monkeypatch)
    host.prepare_caches()
    (folder,) = (place / "tmp").iterdir()
    assert moved().keys() >= {"NUMBA_CACHE_DIR", "KEOPS_CACHE_FOLDER", "MPLCONFIGDIR"}
    assert {Path(value).parent for value in moved().values()} == {folder}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    packages = ", ".join(cache.package for cache in host._caches())
    assert f"{packages} in {folder} until this process ends" in said
    assert f"since {place / 'file'} cannot be written; to choose: NUMBA_CACHE_DIR, KEOPS_CACHE_FOLDER" in said
    assert "\n" not in said


def test_a_child_inherits_what_is_decided(place, monkeypatch, caplog):
    read_only(place, monkeypatch)
    host.prepare_caches()
    before = moved()
    host._made.clear()  # as in a process that has made none
    host.prepare_caches()
    assert moved() == before
    assert len(caplog.records) == 1
    shutil.rmtree(Path(before["NUMBA_CACHE_DIR"]).parent)


def test_the_process_that_made_the_folder_removes_it_and_no_other(place, monkeypatch):
    read_only(place, monkeypatch)
    host.prepare_caches()
    (folder,) = (place / "tmp").iterdir()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    host.discard_caches()
    assert folder.is_dir()
    monkeypatch.undo()
    host.discard_caches()
    assert not folder.exists()


def test_numba_stays_beside_the_code_where_that_can_be_written(place, monkeypatch):
    read_only(place, monkeypatch, install=False)
    host.prepare_caches()
    assert "NUMBA_CACHE_DIR" not in moved()
    assert "KEOPS_CACHE_FOLDER" in moved()


def test_the_users_cache_comes_before_a_temporary_folder(place, monkeypatch, caplog):
    read_only(place, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "scratch"))
    host.prepare_caches()
    assert "NUMBA_CACHE_DIR" not in moved()  # it looks there by itself
    assert moved()["KEOPS_CACHE_FOLDER"] == str(place / "scratch" / "mmdma" / "keops")
    assert "until" not in caplog.text
    assert not list((place / "tmp").iterdir())


def test_a_folder_in_which_others_can_plant_files_is_not_taken(place, monkeypatch):
    read_only(place, monkeypatch)
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    host.prepare_caches()
    assert Path(moved()["KEOPS_CACHE_FOLDER"]).is_relative_to(place / "tmp")


@pytest.mark.parametrize("name", ["J. Doe", "O'Neil", 'a"b', "R&D", "$HOME", "a(1)", "tab\there"])
def test_keops_builds_in_a_path_that_a_shell_leaves_whole(place, monkeypatch, caplog, name):
    monkeypatch.setenv("HOME", str(place / name))
    host.prepare_caches()
    assert list(moved()) == ["KEOPS_CACHE_FOLDER"]
    assert host.is_plain(moved()["KEOPS_CACHE_FOLDER"])
    assert "has a blank, a quote or the like" in caplog.text


@pytest.mark.parametrize("name", ["Müller", "名前", "a_b-c.d+e@f"])
def test_letters_of_any_language_are_plain(place, monkeypatch, name):
    monkeypatch.setenv("HOME", str(place / name))
    host.prepare_caches()
    assert moved() == {}


def test_a_temporary_folder_with_a_blank_is_no_place_for_keops(place, monkeypatch):
    read_only(place, monkeypatch)
    (place / "my tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place / "my tmp"))
    host.prepare_caches()
    assert host.is_plain(moved()["KEOPS_CACHE_FOLDER"])


@pytest.mark.parametrize(
    ("variable", "value"),
    [("KEOPS_CACHE_FOLDER", "{0}/file/folder"), ("KEOPS_CACHE_FOLDER", ""), ("MPLCONFIGDIR", "{0}/file/folder")],
)
def test_a_folder_that_was_named_and_cannot_be_used_is_replaced(place, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value.format(place))
    host.prepare_caches()
    assert host.is_writable(moved()[variable])


def test_a_user_without_a_home_gets_no_folder_named_tilde(place, monkeypatch, caplog):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME, and no entry in the list of users
    monkeypatch.chdir(place)
    host.prepare_caches()
    assert "KEOPS_CACHE_FOLDER" in moved()
    assert "'~/.cache/keops" in caplog.text
    assert not (place / "~").exists()


def test_where_there_is_no_temporary_folder_either_it_is_said(place, monkeypatch, caplog):
    read_only(place, monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(place / "file"))
    monkeypatch.setattr(host, "is_writable", lambda folder: False)
    host.prepare_caches()
    assert moved() == {}
    assert "no cache for KeOps" in caplog.text
    assert "set TMPDIR" in caplog.text


def test_numba_that_is_loaded_already_follows(place, monkeypatch):
    import numba

    read_only(place, monkeypatch)
    host.prepare_caches()
    assert moved()["NUMBA_CACHE_DIR"] == numba.config.CACHE_DIR
    monkeypatch.undo()
    numba.config.reload_config()


def test_what_numba_takes_is_what_is_looked_at(place, monkeypatch):
    """As Numba itself decides, for a file whose folder cannot be written; the same of KeOps."""
    from numba.core.caching import UserWideCacheLocator

    read_only(place, monkeypatch)
    numba = next(host._caches())
    file = str(ROOT / "mmdma_core" / "fused" / "neighbours.py")
    assert Path(numba.own[-1]) == Path(UserWideCacheLocator(lambda: 0, file).get_cache_path()).parent
    assert Path(numba.own[1]) == place / "file" / "fused" / "__pycache__"

    code = "import pykeops; print(pykeops.get_build_folder())"
    environment = os.environ | {"HOME": str(place / "home")}
    monkeypatch.setenv("HOME", str(place / "home"))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [host.keops_folder()], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "mmdma_core fit --simulate branch --n 60 --p 10 --n-epochs 5 --n-starts 1 --variant primal-fused --out o",
        "benchmarks check",  # it ends without Python's own end
    ],
)
def test_a_command_where_neither_the_install_nor_home_can_be_written(tmp_path, config_file, command):
    """A file stands where each folder would be made, so that root cannot write there either."""
    install = tmp_path / "install"
    for package in ("mmdma_core", "benchmarks"):
        shutil.copytree(ROOT / package, install / package, ignore=shutil.ignore_patterns("__pycache__"))
    (install / "mmdma_core" / "fused" / "__pycache__").touch()
    shutil.copy(config_file, tmp_path)
    (tmp_path / "home").touch()
    (tmp_path / "tmp").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES + OTHERS}
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(install)}
    command = [sys.executable, "-m", *command.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written") == 1
    assert not list((tmp_path / "tmp").glob("mmdma-*"))
