"""``python -m rlhf_pg.frontier.child FD ...``: ``rlhf-pg ...`` that ends at once when the process that started it is gone.

FD is the reading end of a pipe of which that process alone holds the other end: it closes however that process ends.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def end_with_parent(alive: int) -> None:
    """Wait until the pipe closes; then kill this process and all that it started in its session."""
    os.read(alive, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    pipe = int(sys.argv.pop(1))
    os.set_inheritable(pipe, False)
    threading.Thread(target=end_with_parent, args=(pipe,), daemon=True).start()
    runpy.run_module("rlhf_pg", run_name="__main__", alter_sys=True)
