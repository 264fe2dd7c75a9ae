"""The file of tenants and their API keys, as it lies on the disk.

Keys are 256 random bits, so one SHA-256 is as good as a slow hash: there is nothing to guess. A key begins
with an id that is no secret, by which its entry is found; the whole is then compared in constant time.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

PREFIX = "fs"
MAX_NAME_CHARS = 64

Name = Annotated[str, Meta(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._@-]{{0,{MAX_NAME_CHARS - 1}}}$")]
Weight = Annotated[float, Meta(gt=0, le=10_000)]
Nice = Annotated[int, Meta(ge=-20, le=19)]
Limit = Annotated[int, Meta(ge=1)]


class KeyFileError(Exception):
    """The file cannot be read, or not be changed as asked. One line for a person."""


class KeyEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key of a tenant; of the key itself only the hash is kept."""

    id: str
    sha256: str
    created: str


class TenantEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tenant: its share, its limits (None: no limit of its own) and its keys."""

    name: Name
    keys: list[KeyEntry]
    weight: Weight = 1.0
    nice: Nice = 0
    max_prompts: Limit | None = None  # accepted and not finished
    max_tokens: Limit | None = None  # context lengths of those, summed, as for queue.max_tokens
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None  # of prompts and answers together
    operator: bool = False  # may read what concerns all tenants: /metrics


class KeyFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenants: list[TenantEntry] = []


def hash_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def id_of(key: str) -> str:
    """The part of a key that is no secret; nothing for what is no key."""
    parts = key.split("-", 2)
    return parts[1] if len(parts) == 3 and parts[0] == PREFIX else ""


def new_key() -> str:
    """A key that nobody has."""
    return f"{PREFIX}-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"


def read_key_file(path: Path) -> KeyFile:
    """Raises KeyFileError."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=KeyFile)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: {error}") from None
    names = [tenant.name for tenant in file.tenants]
    ids = [key.id for tenant in file.tenants for key in tenant.keys]
    if len(set(names)) < len(names) or len(set(ids)) < len(ids):
        raise KeyFileError(f"{path}: a tenant or a key is in it twice")
    return file


def write_key_file(path: Path, file: KeyFile) -> None:
    """Put a new file in the place of the old, readable by its owner alone, who stays the same where root
    writes for a server that runs as another user. Raises KeyFileError."""
    data = msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
        try:
            with os.fdopen(descriptor, "wb") as out:
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    old = path.stat()
                    os.fchown(out.fileno(), old.st_uid, old.st_gid)
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other changes away from the file while the block lasts. Raises KeyFileError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeyFileError(f"{path}: its folder cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
