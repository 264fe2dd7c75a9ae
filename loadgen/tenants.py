"""Who sends which request. Public traces name no clients: a rule assigns them, and the report says which."""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.spec import SpecError, named_numbers, whole
from loadgen.traces import TraceRow


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Row i goes to tenant i modulo their number."""

    names: tuple[str, ...]

    def assign(self, rows: Sequence[TraceRow], seed: int) -> list[str]:
        return [self.names[index % len(self.names)] for index in range(len(rows))]

    def describe(self) -> str:
        return f"{len(self.names)} by turns" if len(self.names) > 1 else "one"


@dataclass(frozen=True, slots=True)
class RandomShares:
    """Each row goes to a tenant drawn by `shares` from a generator seeded with the run's seed."""

    names: tuple[str, ...]
    shares: tuple[float, ...]

    def assign(self, rows: Sequence[TraceRow], seed: int) -> list[str]:
        return random.Random(f"tenants {seed}").choices(self.names, self.shares, k=len(rows))

    def describe(self) -> str:
        shares = ", ".join(f"{name} {share:g}" for name, share in zip(self.names, self.shares, strict=True))
        return f"drawn by shares: {shares}"


@dataclass(frozen=True, slots=True)
class ByKey:
    """Rows with one key (a session, a conversation, a shared prefix) go to one tenant: CRC-32 of the key
    modulo the number of tenants. A row without a key counts its line as one."""

    names: tuple[str, ...]

    def assign(self, rows: Sequence[TraceRow], seed: int) -> list[str]:
        keys = (row.key if row.key is not None else str(row.line) for row in rows)
        return [self.names[zlib.crc32(key.encode()) % len(self.names)] for key in keys]

    def describe(self) -> str:
        return f"{len(self.names)} by the CRC-32 of the row's key"


TenantRule = RoundRobin | RandomShares | ByKey

FORMS = "round-robin:N, key:N or random:NAME=SHARE,NAME=SHARE,..."


def parse_tenants(text: str) -> TenantRule:
    """From one of `FORMS`."""
    kind, _, rest = text.partition(":")
    match kind:
        case "round-robin":
            return RoundRobin(_numbered(rest))
        case "key":
            return ByKey(_numbered(rest))
        case "random":
            shares = named_numbers(rest)
            return RandomShares(tuple(shares), tuple(shares.values()))
        case _:
            raise SpecError(f"tenants are {FORMS}; not {text!r}")


def _numbered(text: str) -> tuple[str, ...]:
    return tuple(f"tenant-{number}" for number in range(1, whole(text, least=1) + 1))


@dataclass(frozen=True, slots=True)
class Identity:
    """How the server is told which tenant a request is of.

    `by` is 'user' (the body's `user` field), 'key' (the tenant's API key as bearer token), 'header:NAME' or
    'none'. `keys` maps tenants to API keys; the one under None is for all others.
    """

    by: str
    keys: dict[str | None, str]

    @classmethod
    def parse(cls, by: str, keys: Sequence[str]) -> "Identity":
        """`keys` are 'TENANT=KEY', or 'KEY' for every tenant that has none of its own, which may end in '='
        as base64 does."""
        if by not in ("user", "key", "none") and not (by.startswith("header:") and by != "header:"):
            raise SpecError(f"a tenant is told by user, key, header:NAME or none; not {by!r}")
        table: dict[str | None, str] = {}
        for entry in keys:
            tenant, _, key = entry.partition("=")
            is_bare = not key.strip("=")
            table[None if is_bare else tenant] = entry if is_bare else key
        return cls(by, table)

    def headers(self, tenant: str) -> dict[str, str]:
        """With `by` 'key' and no key given, the tenant's name is its key."""
        headers: dict[str, str] = {}
        key = self.keys.get(tenant, self.keys.get(None))
        if key is None and self.by == "key":
            key = tenant
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        if self.by.startswith("header:"):
            headers[self.by.removeprefix("header:")] = tenant
        return headers

    def body_fields(self, tenant: str) -> dict[str, object]:
        return {"user": tenant} if self.by == "user" else {}
