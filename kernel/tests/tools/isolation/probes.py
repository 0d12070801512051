"""Attacks, each a function that says whether it got through. Run as a program: `probes.py NAME ARGUMENTS(JSON)`.

The standard library only, so that it runs under any interpreter. The last line of the output is GOT or BLOCKED with the
reason; the tests compare a run at an isolation level with one that nothing confines, which must have got through.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import pty
import signal
import socket
import struct
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)


def checked(done: int) -> int:
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


def read_secret(path: str, marker: str) -> bool:
    return marker in Path(path).read_text()


def list_folder(path: str, name: str) -> bool:
    return name in os.listdir(path)


def stat_file(path: str) -> bool:
    return os.stat(path).st_size > 0


def write_outside(path: str) -> bool:
    Path(path).write_text("x")
    return True


def change_mode(path: str) -> bool:
    os.chmod(path, 0o666)
    return True


def change_times(path: str) -> bool:
    os.utime(path, (1, 1))
    return True


def set_attribute(path: str) -> bool:
    os.setxattr(path, "user.x", b"1")
    return True


def watch(path: str) -> bool:
    descriptor = checked(LIBC.inotify_init1(0))
    checked(LIBC.inotify_add_watch(descriptor, path.encode(), 0xFFF))
    return True


def environment(name: str, marker: str) -> bool:
    return os.environ.get(name) == marker


def descriptors(marker: str) -> bool:
    for number in range(3, 1024):
        try:
            found = os.pread(number, 1000, 0)
        except OSError:
            try:  # a folder: out of it by the way up
                found = b"".join(entry.encode() for entry in os.listdir(number))
            except OSError:
                continue
        if marker.encode() in found:
            return True
    return False


def tcp(port: int, marker: str) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=3) as client:
        client.sendall(marker.encode())
        return client.recv(100) == b"seen"


def udp(port: int, marker: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.sendto(marker.encode(), ("127.0.0.1", port))
        return client.recv(100) == b"seen"


def unix_socket(address: str, marker: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(3)
        client.connect(address.replace("@", "\0"))
        client.sendall(marker.encode())
        return client.recv(100) == b"seen"


def datagram_pair(address: str, marker: str) -> bool:
    """A connected pair needs no socket(): can one end be turned to somebody else?"""
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.sendto(marker.encode(), address)
    return True


def netlink() -> bool:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    return True


def io_uring() -> bool:
    """Its operations pass no filter of system calls."""
    checked(LIBC.syscall(425, 4, ctypes.byref((ctypes.c_char * 120)())))
    return True


def signal_process(pid: int) -> bool:
    os.kill(pid, signal.SIGUSR1)
    return True


def slow_down(pid: int) -> bool:
    os.setpriority(os.PRIO_PROCESS, pid, 15)
    return True


def limit_process(pid: int) -> bool:
    import resource

    resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, 8))
    return True


def host_processes(pid: int, marker: str) -> bool:
    return marker in Path(f"/proc/{pid}/cmdline").read_text()


def count_processes(pid: int) -> bool:
    return os.stat(f"/proc/{pid}").st_mode > 0


def root_of_process(pid: int, path: str, marker: str) -> bool:
    return marker in Path(f"/proc/{pid}/root/{path}").read_text()


def environment_of_process(pid: int, marker: str) -> bool:
    return marker in Path(f"/proc/{pid}/environ").read_text()


def trace_process(pid: int) -> bool:
    checked(LIBC.ptrace(16, pid, 0, 0))  # PTRACE_ATTACH
    os.waitpid(pid, 0x40000000)  # __WALL
    checked(LIBC.ptrace(17, pid, 0, 0))
    return True


def trace_child() -> bool:
    """Not even its own: a tracer changes system calls after the filter has seen them."""
    pid = os.fork()
    if pid == 0:
        time.sleep(5)
        os._exit(0)
    try:
        checked(LIBC.ptrace(16, pid, 0, 0))
    finally:
        os.kill(pid, signal.SIGKILL)
    return True


def memory(mebibytes: int) -> bool:
    room = mmap.mmap(-1, mebibytes << 20)
    room[0] = 1
    return True


def private_memory(mebibytes: int) -> bool:
    return len(bytearray(mebibytes << 20)) > 0


def user_namespace() -> bool:
    checked(LIBC.unshare(0x10000000))
    return True


def user_namespace_by_clone() -> bool:
    pid = checked(LIBC.syscall(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        os._exit(0)
    return True


def mounts() -> bool:
    checked(LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None))
    checked(LIBC.umount(b"/mnt"))
    return True


def terminal() -> bool:
    """Type into a terminal, as whoever sits before it."""
    _, slave = pty.openpty()
    if os.getsid(0) != os.getpid():
        if os.fork():
            return os.waitstatus_to_exitcode(os.wait()[1]) == 0
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        try:
            fcntl.ioctl(slave, termios.TIOCSTI, b"x")
        except OSError:
            os._exit(1)
        os._exit(0)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    fcntl.ioctl(slave, termios.TIOCSTI, b"x")
    return True


def own_terminal() -> bool:
    """The terminal that the kernel was started from."""
    return os.open("/dev/tty", os.O_RDWR) > 0


def processes(number: int) -> bool:
    children: list[int] = []
    try:
        for _ in range(number):
            pid = os.fork()
            if pid == 0:
                time.sleep(30)
                os._exit(0)
            children.append(pid)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return True


def threads(number: int) -> bool:
    stop = threading.Event()
    try:
        for _ in range(number):
            threading.Thread(target=stop.wait, daemon=True).start()
    finally:
        stop.set()
    return True


def big_file(mebibytes: int) -> bool:
    with open(Path(os.environ.get("TMPDIR", "/tmp")) / "big", "wb") as file:
        for _ in range(mebibytes):
            file.write(bytes(1 << 20))
    return True


def many_files(mebibytes: int) -> bool:
    """Fill whatever can be written."""
    written = 0
    for folder in (os.environ.get("TMPDIR", "/tmp"), "/tmp", "/dev/shm", "/dev", "/", "/run", "/var/tmp"):
        for number in range(mebibytes // 4):
            try:
                with open(f"{folder}/fill-{os.getpid()}-{number}", "wb") as file:
                    file.write(bytes(4 << 20))
            except OSError:
                break
            written += 4
            if written >= mebibytes:
                return True
    raise OSError(f"after {written} MiB")


def swapped_link(path: str, marker: str) -> bool:
    """Change a link between check and use, as long as it takes."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    harmless, link = folder / "harmless", folder / "link"
    harmless.write_text("nothing")
    link.symlink_to(harmless)
    stop = threading.Event()

    def swap() -> None:
        targets = (path, str(harmless))
        for number in range(1_000_000):
            if stop.is_set():
                return
            fresh = folder / "fresh"
            fresh.symlink_to(targets[number % 2])
            fresh.rename(link)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(3000):
            try:
                if marker in link.read_text():
                    return True
            except OSError:
                continue
    finally:
        stop.set()
        thread.join()
    raise OSError("3,000 reads met only what is allowed")


def by_handle(path: str, marker: str) -> bool:
    """Open a file by its number, past all folders; what undid early containers."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 8 + 128)
    mount = ctypes.c_int()
    checked(LIBC.name_to_handle_at(-100, path.encode(), handle, ctypes.byref(mount), 0))
    root = os.open(os.path.dirname(path), os.O_RDONLY)
    descriptor = checked(LIBC.open_by_handle_at(root, handle, os.O_RDONLY))
    return marker in os.pread(descriptor, 1000, 0).decode()


def shared_memory(key: int, marker: str) -> bool:
    segment = checked(LIBC.shmget(key, 0, 0))
    LIBC.shmat.restype = ctypes.c_void_p
    address = LIBC.shmat(segment, None, 0o10000)
    return ctypes.string_at(address, len(marker)) == marker.encode()


def main() -> None:
    arguments: dict[str, Any] = json.loads(sys.argv[2])
    try:
        through = globals()[sys.argv[1]](**arguments)
        print("GOT" if through else "BLOCKED: nothing came of it")
    except (OSError, MemoryError, RuntimeError, ProcessLookupError) as error:
        print(f"BLOCKED: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
