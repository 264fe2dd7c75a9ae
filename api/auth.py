"""Whose request it is."""

from dataclasses import dataclass

from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Tenant:
    """A party that GPU time is shared among. `weight` is its share relative to others'."""

    name: str = "default"
    weight: float = 1.0


class KeylessAuth:
    """For a single user: everybody is the default tenant, whatever key a client sends along."""

    def resolve(self, request: Request) -> Tenant:
        return Tenant()
