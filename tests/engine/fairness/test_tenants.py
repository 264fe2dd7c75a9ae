from engine.fairness.cfs import LeastServedQueue
from engine.fairness.policy import Task
from engine.fairness.tenants import Accounts


def make_queue() -> LeastServedQueue[Task]:
    return LeastServedQueue(0)


def test_a_tenant_without_debt_is_forgotten_at_once() -> None:
    accounts = Accounts(memory_ns=100)
    account = accounts.open("a", 1.0, make_queue, clock_ns=50)
    assert account.vruntime_ns == 50
    accounts.close(account, now_ns=0, clock_ns=50)
    accounts.check_integrity()
    assert accounts.get("a") is None
    assert accounts.load == 0


def test_a_debt_is_remembered_for_its_time() -> None:
    accounts = Accounts(memory_ns=100)
    debtor, other = (accounts.open(name, 1.0, make_queue, 0) for name in ("debtor", "other"))
    debtor.vruntime_ns = 10
    accounts.close(debtor, now_ns=0, clock_ns=5)
    accounts.close(other, now_ns=99, clock_ns=5)
    assert accounts.get("debtor") is debtor
    assert accounts.open("debtor", 2.0, make_queue, 5) is debtor
    assert accounts.load == debtor.load == 2048
    accounts.close(debtor, now_ns=100, clock_ns=5)
    accounts.close(accounts.open("other", 1.0, make_queue, 5), now_ns=200, clock_ns=5)
    accounts.check_integrity()
    assert len(accounts) == 0


def test_the_clock_pays_a_debt() -> None:
    accounts = Accounts(memory_ns=100)
    debtor = accounts.open("debtor", 1.0, make_queue, 0)
    debtor.vruntime_ns = 10
    accounts.close(debtor, now_ns=0, clock_ns=9)
    other = accounts.open("other", 1.0, make_queue, 9)
    accounts.close(other, now_ns=1, clock_ns=10)
    assert len(accounts) == 0
