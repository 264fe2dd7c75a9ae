"""Whose request it is."""

import hmac
import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from starlette.requests import Request

from api.errors import ApiError
from api.key_file import KeyFileError, TenantEntry, hash_of, id_of, read_key_file
from engine.config import ConfigError, ServerConfig
from engine.messages import TenantLimits

RELOAD_S = 1.0  # a changed key file is noticed after this
NICE_STEP = 1.25  # weight between two nice levels, about as in the kernel's table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A party that GPU time is shared among. `weight` is its share relative to others'."""

    name: str = "default"
    weight: float = 1.0
    limits: TenantLimits | None = None
    is_operator: bool = True
    salt: str = ""  # separates its cached prefixes from those of others

    def cache_salt(self, wished: str | None) -> str:
        """Never the same for two tenants, whatever they wish."""
        return f"{self.salt}{wished or ''}"


class Auth(Protocol):
    def resolve(self, request: Request) -> Tenant:
        """Raises ApiError (401)."""


class KeylessAuth:
    """For a single user: everybody is the default tenant, whatever key a client sends along."""

    def resolve(self, request: Request) -> Tenant:
        return Tenant()


class KeyAuth:
    """Tenants by their keys. The file is read again when it has changed; one that cannot be read leaves
    things as they were. Raises KeyFileError if the first reading fails."""

    def __init__(self, path: Path, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock_s = clock_s
        self._keys: dict[str, tuple[str, Tenant]] = {}  # key id -> hash, tenant
        self._stamp: tuple[int, int, int] | None = None
        self._look_at_s = 0.0
        self._load()

    def resolve(self, request: Request) -> Tenant:
        now_s = self._clock_s()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + RELOAD_S
            self._reload()
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise _unauthorized("An API key is needed: Authorization: Bearer KEY")
        wanted, tenant = self._keys.get(id_of(key.strip()), ("", None))
        if not hmac.compare_digest(hash_of(key.strip()), wanted) or tenant is None:
            raise _unauthorized("The API key is not known here")
        return tenant

    def _reload(self) -> None:
        try:
            if _stamp_of(self._path) != self._stamp:
                self._load()
                logger.info("read %s again: %d keys", self._path, len(self._keys))
        except KeyFileError as error:
            logger.error("the keys stay as they were: %s", error)

    def _load(self) -> None:
        self._stamp = _stamp_of(self._path)
        tenants = read_key_file(self._path).tenants
        self._keys = {key.id: (key.sha256, _tenant(entry)) for entry in tenants for key in entry.keys}


def make_auth(server: ServerConfig) -> KeylessAuth | KeyAuth:
    """Raises ConfigError: for a key file that cannot be used, and for a server that anybody could use."""
    if server.keys is not None:
        try:
            return KeyAuth(Path(server.keys))
        except KeyFileError as error:
            raise ConfigError(f"server.keys: {error}") from None
    if not server.open and not _is_loopback(server.host):
        raise ConfigError(
            f"server.host: other machines reach {server.host}, and no keys are asked for: set server.keys "
            "(python -m api.keys makes them), or server.open = true to serve everybody"
        )
    return KeylessAuth()


def require_operator(tenant: Tenant) -> None:
    """Raises ApiError (403) for a tenant that may not see what concerns others."""
    if not tenant.is_operator:
        raise ApiError(403, "This needs the key of an operator", code="operator_required")


def _tenant(entry: TenantEntry) -> Tenant:
    limits = TenantLimits(
        max_prompts=entry.max_prompts,
        max_tokens=entry.max_tokens,
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
    )
    return Tenant(
        name=entry.name,
        weight=entry.weight * NICE_STEP**-entry.nice,
        limits=limits,
        is_operator=entry.operator,
        salt=f"{entry.name}/",  # a name has no slash
    )


def _stamp_of(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file is replaced. Raises KeyFileError."""
    try:
        status = path.stat()
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")
