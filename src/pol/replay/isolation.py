"""What a training process does to itself before it runs foreign code, where the platform (Linux) allows it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000  # both from linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def leave_network() -> bool:
    """Move this process into a network of its own, with nothing in it; False where that is not possible.

    Must be called before the process has a second thread. Unix sockets go on working.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) == 0:  # root may do this alone
        return True
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return False
    try:  # keep the own user's name in the new namespace
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    except OSError:
        pass
    return True


def die_with_parent() -> None:
    """End this process when its parent ends, however that ends.

    Otherwise a recording that was killed would go on writing beside the one that resumes it. Elsewhere than on
    Linux it ends at its next message.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
