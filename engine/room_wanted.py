"""How much room somebody waits for: a move's end that does not give as much is no reason to plan."""

from engine.device import Device
from engine.memory.context import Context
from engine.memory.store import ContextStore


class RoomWanted:
    """The least number of pages that would have to be available, on a device or on any, for a prompt that was
    refused in the latest plan to start there, or to go on. What others had claimed there by then counts: who
    is due claims it anew in every plan until it runs, and who had turns ended for it until these are over,
    which is a reason to plan by itself."""

    def __init__(self, store: ContextStore) -> None:
        self._store = store
        self._on: dict[Device, int] = {}
        self._on_any: int | None = None  # beside the reserve
        self.is_lacking = False  # somebody was refused who had a place

    def begin_plan(self) -> None:
        """Nobody has been refused yet."""
        self._on.clear()
        self._on_any = None
        self.is_lacking = False

    def refuse(self, device: Device, context: Context, num_pages: int, spare: int) -> None:
        """The context could not have so many pages more there, with `spare` left."""
        self.is_lacking = True
        least = self._on.get(device)
        if least is None or num_pages + spare < least:
            pool_id, store = device.pool_id, self._store
            own = store.num_available(pool_id) - store.num_available(pool_id, besides=context)
            self._note(device, num_pages + spare + own)

    def refuse_growth(self, device: Device) -> None:
        """A prompt that runs there found no page to go on."""
        self.is_lacking = True
        self._note(device, self._store.num_available(device.pool_id) + 1)

    def refuse_everywhere(self, num_pages: int) -> None:
        """No device with a place had so many pages available beside its reserve; with 0, something else keeps
        the prompt from starting there, which a move's end may change."""
        self.is_lacking |= num_pages > 0
        if self._on_any is None or num_pages < self._on_any:
            self._on_any = num_pages

    def is_there(self, device: Device) -> bool:
        """Whether the device has it now."""
        least = self._on.get(device, self._on_any)
        if least is None:
            return False
        if self._on_any is not None and self._on_any < least:
            least = self._on_any
        return self._store.num_available(device.pool_id) >= least

    def _note(self, device: Device, num_available: int) -> None:
        least = self._on.get(device)
        if least is None or num_available < least:
            self._on[device] = num_available
