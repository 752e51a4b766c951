"""Other programs that plugins start: where they are, and what they print.

For plugins' few needs and quick starts: what a program reads and prints is in memory, so that nobody waits for anybody,
and nothing is imported; subprocess would take as long to import as most programs to run.
"""

from __future__ import annotations

import os

from tortie.base.errors import NotSupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
"""Besides PATH: runtimes do not always have the directories of the superuser's programs there."""


def find(name: str) -> str | None:
    """The file of a program; None when it is not installed."""
    for directory in (*os.environ.get("PATH", "").split(":"), *DIRECTORIES):
        path = f"{directory}/{name}"
        if directory and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def run(path: str, argv: Sequence[str], env: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
    """Exit status (a signal's number is negative), what was printed, and complained. Raises OSError from exec."""
    fds = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    try:
        rest = memoryview(stdin)
        while rest:
            rest = rest[os.write(fds[0], rest) :]
        os.lseek(fds[0], 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        pid = os.posix_spawn(path, list(argv), env, file_actions=actions)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stdout, stderr = (os.pread(fd, os.fstat(fd).st_size or 1, 0) for fd in fds[1:])
    finally:
        for fd in fds:
            os.close(fd)
    return code, stdout, stderr


def output(argv: Sequence[str], stdin: str = "") -> str:
    """What a program prints when it has read `stdin`. Raises NotSupported, in its words, when it fails or is not
    there. Lines of its complaint that begin with # are warnings, and not among them."""
    path = find(argv[0])
    if path is None:
        raise NotSupported(f"{argv[0]} is not installed")
    try:
        code, stdout, stderr = run(path, argv, os.environ, stdin.encode())
    except OSError as error:
        raise NotSupported(f"{path} cannot be run: {error.strerror}") from None
    if code:
        lines = stderr.decode(errors="replace").splitlines()
        words = " ".join(line for line in lines if not line.startswith("#")) or f"exit status {code}"
        raise NotSupported(words if words.startswith(argv[0]) else f"{argv[0]}: {words}")
    return stdout.decode(errors="replace")
