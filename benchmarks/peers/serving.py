"""Loop and clock of the workers in the environments of the peers."""

import json
import os
import sys
import time

import numpy as np


def serve(answer):
    """Answer requests on the standard input until it ends.

    Parameters
    ----------
    answer : callable
        ``answer(arrays, **request)`` returns an answer, a dict, and an array.
    """
    # Nothing but answers may go to the standard output, whatever libraries print.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        with np.load(request.pop("input")) as archive:
            arrays = dict(archive)
        output = request.pop("output")
        told, result = answer(arrays, **request)
        np.savez(output, result=result)
        print(json.dumps(told), file=answers, flush=True)


def timed(run):
    """Return seconds and processor seconds of a run, a dict, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    times = time.perf_counter() - wall, time.process_time() - cpu
    return dict(zip(("seconds", "cpu_seconds"), times, strict=True)), result
