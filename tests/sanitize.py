"""Run the tests of the compiled functions under the sanitizers of the compiler.

    python -m tests.sanitize [arguments of pytest]

The sources are built with AddressSanitizer and UndefinedBehaviorSanitizer into a folder
of this run; a read out of bounds, or an overflow, ends the tests with a report. Needs
Linux and GCC.
"""

import os
import subprocess
import sys
import tempfile

from skconvrfm.compute.native import build

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1"
TESTS = [f"tests/compute/native/test_native_{name}.py" for name in ("calls", "checks")]


def main(arguments):
    with tempfile.TemporaryDirectory(prefix="skconvrfm-sanitize-") as folder:
        os.environ.update({build.CACHE: folder, build.FLAGS: FLAGS, build.SWITCH: "1"})
        # Here, for the compiler is not to run under the sanitizers itself.
        build._build(build._library_path())
        compiler = build._compiler()
        libraries = [
            subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True)
            for name in ("libasan.so", "libstdc++.so")  # in this order
        ]
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(map(str.strip, libraries)),
            # Leaks would be those of Python; what is too large is a MemoryError.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        command = [sys.executable, "-m", "pytest", "-n0", *(arguments or TESTS)]
        return subprocess.call(command, env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
