"""Run a command that is told to end when its parent ends, however that ends: python child.py PARENT_PID COMMAND ...

A script, which imports nothing of tljax, so that it starts at once; it becomes the command.
"""

import ctypes
import os
import signal
import sys

# Source: linux/prctl.h.
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask Linux for SIGTERM at the end of the parent, and become the command."""
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit("prctl failed; a run that outlives its launcher cannot be ruled out")
    # It may have ended before it was asked for.
    if os.getppid() != int(parent):
        sys.exit("the launcher has ended")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
