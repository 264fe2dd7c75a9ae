"""Shares of GPU time while tenants are backlogged, and the bound of `engine.fairness.two_level`."""

from engine.messages import LiveModel
from tests.e2e.server import Server, until


def bound_ns(model: LiveModel, slice_ns: int, since_ns: int) -> int:
    """What two backlogged tenants' services since then, divided by weights of which the smaller is 1, may
    differ by. The n turns at once of the formula are charged no more than all devices can do while the
    longest lasts."""
    num_places = sum(device.max_batch for device in model.devices)
    durations_ns = [
        record.end_ns - record.start_ns
        for record in model.ended
        if record.end_ns is not None and record.end_ns > since_ns
    ]
    return 2 * max(num_places * slice_ns, len(model.devices) * max(durations_ns, default=0))


def are_backlogged(model: LiveModel, weights: dict[str, float]) -> bool:
    return sum(tenant.num_waiting > 0 for tenant in model.tenants if tenant.name in weights) == len(weights)


def check_shares(server: Server, weights: dict[str, float], slice_ns: int, name: str = "tiny") -> None:
    """From the moment that all of these tenants are backlogged, their services by weight stay within the
    bound; until they have been served twice as much, so that shares by other weights would be noticed."""

    def served_ns(model: LiveModel) -> dict[str, float]:
        served = {tenant.name: tenant.service_ns for tenant in model.tenants}
        return {tenant: served[tenant] / weight for tenant, weight in weights.items()}

    until(lambda: are_backlogged(server.model(name), weights))
    since_ns, before = server.live().now_ns, served_ns(server.model(name))
    worst_ns = 0.0
    while True:
        model = server.model(name)
        gained = [now_ns - before[tenant] for tenant, now_ns in served_ns(model).items()]
        worst_ns = max(worst_ns, max(gained) - min(gained))
        if min(gained) > 2 * bound_ns(model, slice_ns, since_ns):
            break
        assert are_backlogged(model, weights), "the answers were too short"
    assert worst_ns <= bound_ns(model, slice_ns, since_ns)
