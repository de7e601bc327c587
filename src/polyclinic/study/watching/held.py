"""Whether a process holds the lock of a results folder, found without touching the lock."""

from __future__ import annotations

import os
from pathlib import Path

from polyclinic.study.lock import LOCK

#: The kernel's table of locks, Linux only.
LOCKS = Path("/proc/locks")
#: Where drives are mounted, and what they are.
MOUNTS = Path("/proc/self/mountinfo")
#: File systems that no other computer writes to, whose files have the numbers of the kernel's table.
LOCAL = {"ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs"}
#: The processes of the whole computer, and not those of a container alone.
PROCESSES, ALL_PROCESSES = Path("/proc/self/ns/pid"), "pid:[4026531836]"


def is_held(folder: Path) -> bool | None:
    """Whether a run holds the folder; None where that can't be told from here.

    To try the lock would take it for a moment, and a run that starts in that moment would be refused. So the kernel's
    own table is read, which knows the processes of this computer: on a network drive, in a container, or on a system
    without such a table, a lock file may be held by someone who is not in it.
    """
    try:
        file = (folder / LOCK).stat()
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        table, processes = LOCKS.read_text(encoding="utf-8"), str(PROCESSES.readlink())
    except OSError:
        return None
    name = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    # 1: FLOCK  ADVISORY  WRITE 8477 fe:00:2875622 0 EOF
    if any(name in line.split() and "->" not in line for line in table.splitlines()):  # -> only waits for it
        return True
    return False if processes == ALL_PROCESSES and file_system(file.st_dev) in LOCAL else None


def file_system(device: int) -> str:
    """Kind of the file system with this number; empty where it is not known."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        before, _, after = line.partition(" - ")
        if len(before.split()) > 2 and before.split()[2] == wanted and after:
            return after.split()[0]
    return ""
