"""Loop and clock of all workers, in the environments of the peers."""

import json
import os
import sys
import time


def serve(answer):
    """Answer the requests on the standard input, one a line (JSON), until it ends.

    Parameters
    ----------
    answer : callable
        ``answer(request)`` of a dict returns a dict.
    """
    # Nothing but answers may go to the standard output, whatever libraries print.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def timed(run):
    """Seconds and CPU seconds that a run takes, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - cpu, result
