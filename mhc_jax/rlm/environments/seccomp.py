"""The system calls that code under bubblewrap may make, as a program for the kernel's filter: an allow list.

See seccomp(2) and linux/filter.h. Whatever is not on the list fails with EPERM, new calls of later kernels among it.
"""

import platform
import struct

# Numbers on x86_64 and aarch64; None where the machine has no such call.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # pipes that are open, and files that can be seen
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62), "fstat": (5, 80),
    "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "open": (2, None), "openat": (257, 56),
    "getdents64": (217, 61), "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "fcntl": (72, 25), "pipe": (22, None), "pipe2": (293, 59),
    # memory
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214),
    # signals of its own, waiting, clocks
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "gettimeofday": (96, 169),
    "time": (201, None), "times": (100, 153), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72),
    # what it is and where it runs
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getrandom": (318, 278), "uname": (63, 160), "sysinfo": (99, 179),
    "getrusage": (98, 165), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
# What Python asks of a file that it opens: whether it is a terminal, and that programs do not inherit it.
_IOCTL, _REQUESTS = (16, 29), (0x5401, 0x5451)
# Calls that must fail, for the canary and the corpus of escapes.
_FORBIDDEN = {
    "unshare": (272, 97), "ptrace": (101, 117), "userfaultfd": (323, 282), "bpf": (321, 280), "keyctl": (250, 219),
    "mount": (165, 40), "io_uring_setup": (425, 425), "memfd_create": (319, 279), "setns": (308, 268),
    "process_vm_readv": (310, 270), "perf_event_open": (298, 241),
}  # fmt: skip

# By platform.machine(): AUDIT_ARCH of linux/audit.h, and the place in the pairs above.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # the second with EPERM
_NUMBER, _ARCH, _SECOND_ARGUMENT = 0, 4, 24
# On x86_64, calls of the x32 ABI carry this bit.
_X32 = 0x40000000


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known."""
    return platform.system() == "Linux" and platform.machine() in _MACHINES


def program() -> bytes:
    """The filter for this machine, as an array of ``struct sock_filter``."""
    arch, place = _MACHINES[platform.machine()]
    return b"".join(struct.pack("=HBBI", *step) for step in _steps(arch, place))


def forbidden() -> dict[str, int]:
    """Names and numbers of some calls that the filter refuses; none on a machine that is not supported."""
    if not supported():
        return {}
    _, place = _MACHINES[platform.machine()]
    return {name: numbers[place] for name, numbers in _FORBIDDEN.items()}


def _steps(arch: int, place: int) -> list[tuple[int, int, int, int]]:
    """Operation, how many steps to skip if true, and if false, operand."""
    steps = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for numbers in _ALLOWED.values():
        if numbers[place] is not None:
            steps += [(_EQUAL, 0, 1, numbers[place]), (_RETURN, 0, 0, _ALLOW)]
    steps += [(_EQUAL, 0, 2 * len(_REQUESTS) + 1, _IOCTL[place]), (_LOAD, 0, 0, _SECOND_ARGUMENT)]
    for request in _REQUESTS:
        steps += [(_EQUAL, 0, 1, request), (_RETURN, 0, 0, _ALLOW)]
    return [*steps, (_RETURN, 0, 0, _REFUSE)]
