"""Run pieces of code, each in a process that has imported the package and nothing else: no test, no shape checks.

The package is imported once; every piece gets a fork, which starts in no time. A line of JSON in, the code; a line of
JSON out, the exit status and what was printed. Started by the fixture ``bare``.
"""

import json
import os
import sys
import tempfile
import traceback

import ssl_blocks

for public in ssl_blocks.__all__:
    getattr(ssl_blocks, public)


def run(code: str) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as printed:
        child = os.fork()
        if child == 0:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            status = 1
            try:
                exec(compile(code, "<bare>", "exec"), vars(sys.modules["__main__"]))  # as a script's own
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        return status, printed.read()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
