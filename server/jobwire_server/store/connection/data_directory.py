"""The data directory of the bundled Valkey: its rights, its locks, and where its socket is.

Two files hold locks. `lock` is held by the server, so that two of them never share a data
directory. `valkey.lock` is inherited by the Valkey process itself and lives exactly as long
as it does: after a kill -9 of the server its Valkey runs on, and the next server sees by
that lock that it must adopt it rather than start a second one on the same files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal
from urllib.parse import quote

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.units import printable
from jobwire_server.store.connection.connect import StoreRefused

MAX_SOCKET_PATH = 103
"""The shortest limit of the systems served: macOS takes 104 bytes with the final NUL."""
FULL_BELOW = 64 << 10
"""With fewer bytes left a disk is called full."""
_FILES = {
    *("lock", "valkey.lock", "valkey.log", "valkey.pid", "valkey.conf", "socket"),
    *("run", "appendonlydir", "dump.rdb", "lost+found"),
}
"""What is found in a data directory, beside `temp-…` files of a rewrite."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.store")


class DataDirectory:
    """One directory; nothing is touched before `open`.

    Args:
        path: Made if missing. One server at a time may use it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.path = path.expanduser().absolute()
        except (RuntimeError, OSError) as error:
            # No such user, no home directory, or a current directory that was removed.
            raise StoreRefused(
                f"data_dir: {printable(str(path))} leads nowhere: {error}; name a directory by"
                " its whole path, with --data-dir or JOBWIRE_DATA_DIR"
            ) from error
        self.shown = printable(str(self.path))
        """The path, for people."""
        self.socket = Path()
        """Where the Valkey listens, or did."""
        self._lock: int | None = None

    @property
    def url(self) -> str:
        """Of the socket. Whatever stands in the path, it is a path in the URL too."""
        return f"unix://{quote(os.fsencode(self.socket))}"

    @property
    def held(self) -> bool:
        """Between open and close."""
        return self._lock is not None

    @property
    def log_file(self) -> Path:
        """Valkey's log."""
        return self.path / "valkey.log"

    @property
    def pid_file(self) -> Path:
        """Valkey's process id, while it runs."""
        return self.path / "valkey.pid"

    def open(self) -> None:
        """Make the directory, see to its rights, and hold it.

        Raises:
            StoreRefused: It can't be used, or another server uses it.
        """
        with self._refusing():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._hold()
        try:
            with self._refusing():
                self._narrow()
                run = self.path / "run"
                run.mkdir(mode=0o700, exist_ok=True)
                run.chmod(0o700)
                # Of versions that started Valkey with a file: it would mislead whoever reads it.
                (self.path / "valkey.conf").unlink(missing_ok=True)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release it. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self.socket.parent.name.startswith("jobwire-") and not self.locked_by_valkey():
            shutil.rmtree(self.socket.parent, ignore_errors=True)
            (self.path / "socket").unlink(missing_ok=True)

    def take_valkey_lock(self) -> int | None:
        """Return the lock for the process to inherit; None while a process holds it.

        Raises:
            StoreRefused: Its file can't be used.
        """
        with self._refusing():
            fd = _lock_file(self.path / "valkey.lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def locked_by_valkey(self) -> bool:
        """True if a Valkey process runs on the directory."""
        fd = self.take_valkey_lock()
        if fd is None:
            return True
        os.close(fd)
        return False

    def choose_socket(self) -> None:
        """Settle where the next process listens: at the same place as before, if possible.

        Raises:
            StoreRefused: There is no place for it.
        """
        recorded = self._recorded_socket()
        if recorded is not None and _is_private(recorded.parent):
            self.socket = recorded
            return
        with self._refusing():
            path = self.path / "run" / "valkey.sock"
            if not _fits(path):
                try:
                    private = tempfile.mkdtemp(prefix="jobwire-", dir="/tmp")
                except OSError as error:
                    raise StoreRefused(
                        f"data_dir: {self.shown} is too long a path for a socket, and /tmp can't be"
                        f" used for it ({error.strerror}); choose a directory with a path of some"
                        f" {MAX_SOCKET_PATH - 20} bytes"
                    ) from error
                path = Path(private) / "valkey.sock"
            with open_private(self.path / "socket", "wb") as file:
                file.write(os.fsencode(path) + b"\n")
        self.socket = path

    def find_socket(self) -> None:
        """Learn where the running process listens."""
        self.socket = self._recorded_socket() or self.socket

    def last_words(self) -> str:
        """Return the end of Valkey's log, and what is wrong with the disk."""
        try:
            text = self.log_file.read_text(errors="replace")
        except OSError:
            text = ""
        words = " / ".join(text.strip().splitlines()[-3:])
        return f"{words}; the disk is full" if self.is_full() else words

    def is_full(self) -> bool:
        """True if nothing can be written any more."""
        try:
            return shutil.disk_usage(self.path).free < FULL_BELOW
        except OSError:
            return False

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = Path(error.filename) if isinstance(error.filename, str) else self.path
            at = "" if path == self.path else f": {printable(str(path))}"
            remedy = (
                "make room on its disk"
                if error.errno in (errno.ENOSPC, errno.EDQUOT)
                else "choose a directory that this user can write, with --data-dir or"
                " JOBWIRE_DATA_DIR"
            )
            raise StoreRefused(
                f"data_dir: {self.shown} can't be used{at}: {error.strerror}{_owner(path)};"
                f" {remedy}"
            ) from error

    def _hold(self) -> int:
        fd = _lock_file(self.path / "lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise StoreRefused(
                f"data_dir: {self.shown} is in use by another server (process {holder}); stop"
                " it, or choose another data directory"
            ) from error
        except BaseException:
            os.close(fd)
            raise
        # On a full disk there is no room for the number; the lock holds without it.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        return fd

    def _narrow(self) -> None:
        """Let nobody but this user read what is there already.

        A directory that holds other things as well keeps its own rights: somebody named one that
        is used for more. One of another user, as volumes of containers are, keeps them too. Then
        those of the files are what counts, unless others could put files of theirs in the place.
        """
        found = self.path.stat()
        mine = found.st_uid == os.geteuid()
        names = os.listdir(self.path)
        if mine and all(name in _FILES or name.startswith("temp-") for name in names):
            _close_to_others(self.path)
        elif found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise StoreRefused(
                f"data_dir: {self.shown} can be written by every user of this machine:"
                " chmod o-w it, or choose another directory"
            )
        for name in names:
            if name in _FILES or name.startswith("temp-"):
                _close_to_others(self.path / name)
        with contextlib.suppress(FileNotFoundError):
            for each in (self.path / "appendonlydir").iterdir():
                _close_to_others(each)

    def _recorded_socket(self) -> Path | None:
        try:
            recorded = (self.path / "socket").read_bytes()
        except OSError:
            return None
        path = Path(os.fsdecode(recorded.removesuffix(b"\n")))
        inside = path.parent == self.path / "run" and _fits(path)
        return path if inside or path.parent.name.startswith("jobwire-") else None


def open_private(path: Path, mode: Literal["wb", "ab"]) -> IO[bytes]:
    """Open a file that nobody else can read, whatever the umask says."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))


def _fits(path: Path) -> bool:
    """A socket may be there, and its URL says so."""
    try:
        return len(str(path).encode()) <= MAX_SOCKET_PATH
    except UnicodeEncodeError:
        return False  # bytes that are not text do not survive a URL


def _lock_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _close_to_others(path: Path) -> None:
    """Take the rights of the group and of others away, if the file is this user's."""
    found = path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode) or not mode & 0o077:
        return
    path.chmod(mode & 0o700)
    log.info(
        "others could read it; now only this user can",
        path=printable(str(path)),
        mode=f"{mode & 0o700:04o}",
    )


def _owner(path: Path) -> str:
    """Whose it is, if that is another's."""
    for each in (path, *path.parents):
        try:
            owner = each.lstat().st_uid
        except OSError:
            continue
        if owner != os.geteuid():
            what = "it" if each == path else printable(str(each))
            return f" ({what} belongs to user {owner}, this is user {os.geteuid()})"
        return ""
    return ""


def _is_private(directory: Path) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return mine and stat.S_IMODE(found.st_mode) == 0o700
