"""Build of the compiled functions, once per machine and on first need, into a cache.

A digest lies beside the library. It is loaded only if both, and the folder, are the
user's own and nobody else can write to them. Where it can neither be found nor built,
array operations compute the same up to rounding, after one warning per process.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from ..files import TEMPORARY, try_lock, write_whole
from ..warn import warn_caller

try:
    import pwd
except ImportError:  # not on Windows
    pwd = None  # type: ignore[assignment]

SWITCH = "SKCONVRFM_COMPILE"  # "0" is never, "1" is always, however small the work
CACHE = "SKCONVRFM_CACHE"  # folder of the built libraries
FLAGS = "SKCONVRFM_CXXFLAGS"  # more options for the compiler, after the others

# Pairs × locations × layers that take array operations longer than the compiler takes.
WORTH_COMPILING = 1e8
# Multiplications of a convolution that take array operations as long.
PRODUCTS_A_PAIR = 200

_SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
_HEADERS = sorted(Path(__file__).parent.glob("*.h"))
_FLAGS = "-std=c++17 -O3 -fno-math-errno -fno-trapping-math -fPIC -shared".split()
_BUILD_SECONDS = 120
_WAIT_SECONDS = 60  # for the build of another process
_SCRATCH = "skconvrfm-build-"
# No compiler, or it fails; no folder that can be trusted; a variable that is malformed.
FAILURES = OSError, RuntimeError, ValueError, subprocess.SubprocessError

_TYPES = {"-": None, "i": ctypes.c_int, "l": ctypes.c_long, "p": ctypes.c_void_p}
_FUNCTIONS = {  # the result and the arguments of each
    "kernel_lanes": "l",
    "pack": "-" + "p" + "lllll" + "p",
    "kernel_value": "i" + "ppp" + "llll" + "pl",
    "kernel_pullback": "i" + "ppp" + "llll" + "plpp",
    "gram_product": "-" + "llll" + "pppp",
    "output_product": "i" + "p" + "lllll" + "pllppp",
    "filter_lanes": "l",
    "filter_maps": "i" + "plppppp",
}


def load(work):
    """Return the compiled functions, a ctypes.CDLL, built if need be; or None.

    ``work`` is pairs × locations × layers. With none in the cache, large computations
    wait for the compiler, small ones do without for the rest of the process.
    """
    switch = os.environ.get(SWITCH)
    wanted = switch == "1" or work >= WORTH_COMPILING
    return _load() if switch != "0" and (wanted or _was_in_cache()) else None


@functools.cache
def _was_in_cache():
    """Return True if a library was there when this process first asked."""
    with suppress(*FAILURES):
        return _library_path().exists()
    return False


@functools.cache
def _load():
    """Return the library, or None after a warning."""
    try:
        path = _library_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(path.parent, "folder", stat.S_ISDIR)
        if not _is_sound(path):
            with _build_lock(path.parent):
                if not _is_sound(path):  # others may have built it meanwhile
                    _build(path)
        return _open(path)
    except FAILURES as error:
        reason = error
        if isinstance(error, subprocess.TimeoutExpired):
            reason = f"the C++ compiler took more than {error.timeout} seconds"
        warn_caller(
            "skconvrfm computes without its compiled functions, which takes longer: "
            f"{reason}. Set {SWITCH}=0 to do without them and this warning.",
        )
        return None


def _open(path):
    """Return the library of a file, with the types of its functions."""
    library = ctypes.CDLL(str(path))
    try:
        for name, letters in _FUNCTIONS.items():
            for real in ("float", "double"):
                function = getattr(library, f"{name}_{real}")
                function.restype, *function.argtypes = map(_TYPES.get, letters)
    except AttributeError as error:
        path.unlink(missing_ok=True)  # the next process builds it anew
        raise OSError(f"a function is missing: {error}") from error
    return library


def check_owner(path, kind, is_kind):
    """Refuse a file or folder of others, or one that others can write to."""
    status = path.lstat()  # a link can be turned to another place
    if not is_kind(status.st_mode):
        fault = f"is not a {kind}"
    elif os.name == "posix" and status.st_uid != os.geteuid():
        fault = "belongs to another user"
    elif os.name == "posix" and status.st_mode & 0o022:
        fault = "can be written to by others"
    else:
        return
    raise PermissionError(f"{path} {fault}; set {CACHE} to a folder of your own")


def _is_sound(path):
    """Return True if a library is there, our own, and as it was when it was built."""
    digest = path.with_suffix(".sha256")
    with suppress(OSError, UnicodeError):
        for file in (path, digest):
            check_owner(file, "file", stat.S_ISREG)
        return digest.read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    return False


def _build(path):
    """Compile the library, and write it and its digest, each as a whole."""
    _remove_leftovers(path.parent)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        _run([*_command(), *map(str, _SOURCES), "-o", str(built)], scratch)
        library = built.read_bytes()
    digest = hashlib.sha256(library).hexdigest().encode()
    for file, content in ((path, library), (path.with_suffix(".sha256"), digest)):
        write_whole(file, functools.partial(write_own, content))


def write_own(content, file):
    """Write to a file, which is the user's own whatever the umask."""
    if os.name == "posix":
        os.fchmod(file.fileno(), 0o600)
    file.write(content)


def _run(command, scratch):
    """Run the compiler, which ends with all its children if it is interrupted."""
    null, env = subprocess.DEVNULL, {**os.environ, "TMPDIR": scratch}
    pipes = {"stdin": null, "stdout": null, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, start_new_session=True, **pipes) as process:
        try:
            _, errors = process.communicate(timeout=_BUILD_SECONDS)
        except BaseException:
            with suppress(ProcessLookupError):
                if os.name == "posix":
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
            raise
    if process.returncode:
        output = errors.decode(errors="replace").strip()[-500:]
        raise RuntimeError(f"the C++ compiler {command[0]} failed with {output!r}")


def _remove_leftovers(folder):
    """Remove the files of builds that were killed."""
    names = rf"{_SCRATCH}.*|\.[0-9a-f]{{32}}\.\w+\.[0-9a-f]{{32}}\{TEMPORARY}"
    for path in folder.iterdir():
        if re.fullmatch(names, path.name):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > _BUILD_SECONDS:
                    path.unlink() if path.is_file() else shutil.rmtree(path)


@contextmanager
def _build_lock(folder):
    """Wait until no other process builds, if files have locks; or TimeoutError."""
    with open(folder / "build.lock", "w") as file:
        end = time.monotonic() + _WAIT_SECONDS
        while try_lock(file) is False:
            if time.monotonic() > end:
                raise TimeoutError("another process is building them")
            time.sleep(0.05)
        yield


def _library_path():
    """Return the library's file, named by all that decides its instructions."""
    command = _command()
    machine = platform.machine(), *platform.libc_ver(), sys.platform, _processor() or ""
    digest = hashlib.sha256("\0".join((*command, *machine)).encode())
    for path in (*_HEADERS, *_SOURCES):
        digest.update(b"\0%s\0%s" % (path.name.encode(), path.read_bytes()))
    return cache_folder() / f"{digest.hexdigest()[:32]}.so"


def _command():
    """Return the compiler and its options."""
    # For a processor that is not known, the library would be another one's as well.
    native = ["-march=native"] if _processor() else []
    return [*_compiler(), *_FLAGS, *native, *shlex.split(os.environ.get(FLAGS, ""))]


def _compiler():
    """Return the C++ compiler: that of the variable CXX, or a common one."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        words = shlex.split(name)
        if words and (found := shutil.which(words[0])):
            return [found, *words[1:]]
    raise FileNotFoundError("there is no C++ compiler; install g++ or clang++")


@functools.cache
def _processor():
    """Return the instructions of this machine's processors, or None if unknown."""
    with suppress(*FAILURES):
        if sys.platform == "darwin":
            command = ["sysctl", "machdep.cpu.brand_string", "hw.optional"]
            return subprocess.check_output(command, text=True, timeout=9)
        lines = set(Path("/proc/cpuinfo").read_text().splitlines())
        known = (line for line in lines if line.startswith(("flags", "Features")))
        return "\n".join(sorted(known))
    return None


def cache_folder():
    """Return the folder of the libraries, an absolute path."""
    if os.environ.get(CACHE):
        return Path(os.path.abspath(os.environ[CACHE]))
    base, home = (os.environ.get(name, "") for name in ("XDG_CACHE_HOME", "HOME"))
    if os.path.isabs(base):
        return Path(base) / "skconvrfm"
    try:
        if pwd is not None and not os.path.isabs(home):
            home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise RuntimeError(f"there is no home folder; set {CACHE}") from None
    return Path(home or Path.home()) / ".cache" / "skconvrfm"
