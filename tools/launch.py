"""Run a script, and end with the process that started this one, however that one ended: python launch.py SCRIPT ARGS.

The parent holds the other end of our standard input, which the system closes even for a parent that was killed.
"""

import os
import runpy
import sys
import threading


def end_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin: its lock, held by a waiting thread, would crash an orderly exit
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
