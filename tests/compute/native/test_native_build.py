"""The library is built once, loaded only if it can be trusted, or done without."""

import ctypes
import functools
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skconvrfm.compute import files
from skconvrfm.compute.native import build

LARGE, SMALL = build.WORTH_COMPILING, build.WORTH_COMPILING / 2
pytestmark = [
    pytest.mark.skipif(
        not any(map(shutil.which, ("g++", "clang++", "c++"))),
        reason="no C++ compiler here",
    ),
    pytest.mark.skipif(os.name != "posix", reason="owners and modes are of POSIX"),
]


@pytest.fixture(scope="module")
def library_file():
    """Build the library, or take the one that other tests built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, "1")
        library = build.load(0)
    return Path(library._name)


@pytest.fixture
def fresh(monkeypatch, tmp_path, library_file):
    """Act as a process that starts: an empty cache, a compiler that takes no time.

    Gives the file of the library, and the list of runs of the compiler.
    """
    runs = []

    def run(command, scratch):
        shutil.copy(library_file, command[-1])
        runs.append(command)

    monkeypatch.setattr(build, "_run", run)
    monkeypatch.setenv(build.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(build.SWITCH, raising=False)
    begin_new_process(monkeypatch)
    return build._library_path(), runs


def begin_new_process(monkeypatch):
    """Forget, for one test, what this process has found and loaded."""
    for name in ("_load", "_was_in_cache"):
        function = getattr(build, name).__wrapped__
        monkeypatch.setattr(build, name, functools.cache(function))


def is_loaded(work=LARGE):
    return isinstance(build.load(work), ctypes.CDLL)


def put_library(path, content):
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(content)
    path.with_suffix(".sha256").write_text(hashlib.sha256(content).hexdigest())
    for file in (path, path.with_suffix(".sha256")):
        file.chmod(0o600)


def script_as_compiler(monkeypatch, folder, *lines):
    """Take a shell script, to which "$target" is the file to make, for the compiler."""
    script = folder / "compiler"
    script.write_text("\n".join(["#!/bin/sh", "for target; do :; done", *lines]))
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))


# ---------------------------------------------------------------- the cache


def test_large_work_is_compiled_once_into_the_cache(fresh, monkeypatch):
    path, runs = fresh
    assert build.load(SMALL) is None and runs == []
    assert is_loaded() and is_loaded() and len(runs) == 1
    # The library that large work built meanwhile would change the last bits.
    assert build.load(SMALL) is None
    names = {path.name, path.with_suffix(".sha256").name, "build.lock"}
    assert set(os.listdir(path.parent)) == names
    for file in (path, path.parent):
        assert file.stat().st_mode & 0o077 == 0  # for nobody else
    begin_new_process(monkeypatch)
    assert is_loaded(SMALL) and len(runs) == 1


def test_switch_decides_however_large_the_work(fresh, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "0")
    assert build.load(LARGE) is None
    monkeypatch.setenv(build.SWITCH, "1")
    assert is_loaded(0)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_library_is_trusted_whatever_the_umask(umask, fresh, monkeypatch):
    before = os.umask(umask)
    try:
        assert is_loaded()
    finally:
        os.umask(before)
    begin_new_process(monkeypatch)
    assert is_loaded() and len(fresh[1]) == 1


@pytest.mark.parametrize("own", [None, ""])
@pytest.mark.parametrize(
    ("base", "home", "expected"),
    [
        ("/base", "/home/me", "/base"),
        (None, "/home/me", "/home/me/.cache"),
        ("there", None, None),  # relative paths are ignored: the folder of the user
        ("there", "", None),
        ("there", "here", None),
    ],
)
def test_cache_folder_is_that_of_the_user_by_default(
    own, base, home, expected, monkeypatch
):
    variables = {build.CACHE: own, "XDG_CACHE_HOME": base, "HOME": home}
    for name, value in variables.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    of_the_user = Path(build.pwd.getpwuid(os.getuid()).pw_dir, ".cache")
    assert build.cache_folder() == Path(expected or of_the_user, "skconvrfm")


def test_relative_cache_folder_is_one_of_the_current_folder(
    fresh, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(build.CACHE, ".")
    for _ in range(2):
        begin_new_process(monkeypatch)
        assert is_loaded() and len(fresh[1]) == 1
    assert build.load(LARGE)._name == str(tmp_path / fresh[0].name)


@pytest.mark.parametrize("change", ["header", "options", "compiler", "processor"])
def test_key_covers_sources_compiler_options_and_processor(
    change, monkeypatch, tmp_path
):
    before = build._library_path()
    if change == "header":
        header = tmp_path / "vectors.h"
        header.write_bytes(build._HEADERS[0].read_bytes() + b"// changed")
        monkeypatch.setattr(build, "_HEADERS", [header])
    elif change == "options":
        monkeypatch.setenv(build.FLAGS, "-g")
    elif change == "compiler":
        monkeypatch.setenv("CXX", sys.executable)
    else:
        monkeypatch.setattr(build, "_processor", lambda: "flags: avx1024")
    assert build._library_path() != before


def test_options_of_an_unknown_processor_are_general(monkeypatch):
    assert "-march=native" in build._command()
    monkeypatch.setattr(build, "_processor", lambda: None)
    assert "-march=native" not in build._command()


# -------------------------------------------------------------------- trust


def link(path):
    other = path.with_name("other")
    if path.exists():
        path.rename(other)
    else:
        other.mkdir()
    path.symlink_to(other)


def give_away(path):
    if not path.exists():
        path.mkdir()
    try:
        os.chown(path, 65534, -1)
    except OSError:
        pytest.skip("only root can give files away")


UNSOUND = {
    "wrong content": lambda path: path.write_bytes(path.read_bytes()[:40000]),
    "wrong digest": lambda path: path.with_suffix(".sha256").write_text("0" * 64),
    "no digest": lambda path: path.with_suffix(".sha256").unlink(),
    "writable": lambda path: path.chmod(0o620),
    "link": link,
    "foreign": give_away,
}


@pytest.mark.parametrize("damage", UNSOUND)
def test_truncated_or_foreign_library_is_rebuilt(damage, fresh, library_file):
    path, runs = fresh
    put_library(path, library_file.read_bytes())
    UNSOUND[damage](path)
    assert is_loaded() and len(runs) == 1
    status = path.lstat()
    assert stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    assert path.read_bytes() == library_file.read_bytes()


def test_library_without_a_function_is_done_without_and_removed(fresh, tmp_path):
    source = tmp_path / "empty.cpp"
    source.write_text("")
    empty = tmp_path / "empty.so"
    command = [*build._compiler(), "-shared", "-fPIC", source, "-o", empty]
    subprocess.run(command, check=True)
    put_library(fresh[0], empty.read_bytes())
    with pytest.warns(UserWarning, match="function is missing"):
        assert build.load(LARGE) is None
    assert not fresh[0].exists()


FOLDERS = {
    "writable": lambda folder: (folder.mkdir(), folder.chmod(0o1777)),
    "link": link,
    "foreign": give_away,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folder_of_others_is_refused(kind, fresh, library_file):
    path, runs = fresh
    FOLDERS[kind](path.parent)
    put_library(path, library_file.read_bytes())
    with pytest.warns(UserWarning, match=build.CACHE):
        assert build.load(LARGE) is None
    assert runs == []


# ---------------------------------------------------------- doing without it


def no_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def slow_compiler(monkeypatch, tmp_path):
    script_as_compiler(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(build, "_BUILD_SECONDS", 0.1)


def no_folder(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(build.CACHE, str(tmp_path / "file" / "cache"))


def no_home(monkeypatch, tmp_path):
    for name in (build.CACHE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build.os, "getuid", lambda: 2**31 - 7)


def compiler_of(*lines):
    return lambda patch, folder: script_as_compiler(patch, folder, *lines)


OBSTACLES = {  # and the reason that is given
    "no compiler": (no_compiler, r"no C\+\+ compiler"),
    "fails": (compiler_of("echo not today >&2", "exit 1"), "failed with 'not today'"),
    "slow": (slow_compiler, "more than 0.1 seconds"),
    "no result": (compiler_of("exit 0"), "No such file"),
    "broken": (
        compiler_of('echo no library > "$target"'),
        "invalid ELF|not a|slice|file too short",
    ),
    "no folder": (no_folder, "Not a directory"),
    "no home": (no_home, "no home folder"),
    "options": (lambda patch, _: patch.setenv(build.FLAGS, "'"), "quotation"),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_one_warning_where_nothing_can_be_built(
    obstacle, monkeypatch, tmp_path, recwarn, capfd
):
    monkeypatch.delenv(build.SWITCH, raising=False)
    monkeypatch.setenv(build.CACHE, str(tmp_path / "cache"))
    begin_new_process(monkeypatch)
    make, reason = OBSTACLES[obstacle]
    make(monkeypatch, tmp_path)
    assert build.load(SMALL) is None and len(recwarn) == 0
    with pytest.warns(UserWarning, match=reason) as caught:
        assert build.load(LARGE) is None
        assert build.load(LARGE) is None
    assert len(caught) == 1 and f"{build.SWITCH}=0" in str(caught[0].message)
    assert capfd.readouterr() == ("", "")
    if obstacle != "broken" and (tmp_path / "cache").exists():
        assert os.listdir(tmp_path / "cache") == ["build.lock"]


def test_no_warning_where_compiled_functions_are_not_wanted(monkeypatch, tmp_path):
    begin_new_process(monkeypatch)
    no_compiler(monkeypatch, tmp_path)
    monkeypatch.setenv(build.SWITCH, "0")
    assert build.load(LARGE) is None


# ----------------------------------------------------------------- the build


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


def is_alive(pid):
    """Return True if a process is alive and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")


@linux
@pytest.mark.parametrize("error", [subprocess.TimeoutExpired, KeyboardInterrupt])
def test_compiler_ends_with_its_children(error, monkeypatch, tmp_path):
    pids = tmp_path / "pids"
    lines = f"sleep 60 & echo $$ $! > {pids}.tmp; mv {pids}.tmp {pids}", "wait"
    script_as_compiler(monkeypatch, tmp_path, *lines)
    monkeypatch.setattr(build, "_BUILD_SECONDS", 2)
    if error is KeyboardInterrupt:

        def communicate(process, timeout):
            wait_for(pids.exists)
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    path = tmp_path / "made.so"
    with pytest.raises(error):
        build._build(path)
    for pid in pids.read_text().split():
        wait_for(lambda pid=pid: not is_alive(pid), 5)
    assert not any(name.startswith(build._SCRATCH) for name in os.listdir(tmp_path))


def test_leftovers_of_killed_builds_are_removed_and_nothing_else(fresh):
    folder = fresh[0].parent
    folder.mkdir(mode=0o700)
    old = [f"{build._SCRATCH}abc", f".{fresh[0].name}.{'0' * 32}.tmp"]
    kept = ["mine", f"{build._SCRATCH}new", "note.tmp", f"{'a' * 32}.so"]
    for name in (*old, *kept):
        path = folder / name
        path.mkdir() if name.startswith(build._SCRATCH) else path.write_text("")
        if not name.endswith("new"):
            os.utime(path, (0, 0))
    assert is_loaded()
    assert set(kept) <= set(os.listdir(folder)) and not set(old) & set(
        os.listdir(folder)
    )


def test_lock_of_a_dead_process_does_not_block(fresh, monkeypatch):
    fresh[0].parent.mkdir(mode=0o700)
    lock = fresh[0].parent / "build.lock"
    code = (
        f"import fcntl, time; file = open({str(lock)!r}, 'w');"
        "fcntl.flock(file, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        monkeypatch.setattr(build, "_WAIT_SECONDS", 0.1)
        with pytest.raises(TimeoutError), build._build_lock(lock.parent):
            pass
        process.send_signal(signal.SIGKILL)
    assert is_loaded()


def test_long_build_of_another_process_is_done_without(fresh, monkeypatch):
    fresh[0].parent.mkdir(mode=0o700)
    monkeypatch.setattr(build, "_WAIT_SECONDS", 0.1)
    with (
        build._build_lock(fresh[0].parent),
        pytest.warns(UserWarning, match="another process"),
    ):
        assert build.load(LARGE) is None
    begin_new_process(monkeypatch)
    assert is_loaded()


def test_file_systems_without_locks_build_without(fresh, monkeypatch):
    def flock(file, operation):
        raise OSError("no locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    assert is_loaded()


@pytest.mark.slow
def test_four_processes_at_once_compile_once(monkeypatch, tmp_path, environment):
    log, compiler = tmp_path / "log", build._compiler()[0]
    lines = f'echo run >> "{log}"', f'exec {compiler} "$@" -O0'
    script_as_compiler(monkeypatch, tmp_path, *lines)
    environment |= {build.CACHE: str(tmp_path / "cache"), build.SWITCH: "1"}
    environment["CXX"] = os.environ["CXX"]
    code = "from skconvrfm.compute.native.build import load; print(load(0) is not None)"
    options = {"env": environment, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, **options) for _ in range(4)]
    assert [p.communicate()[0] for p in processes] == ["True\n"] * 4
    assert log.read_text() == "run\n"
