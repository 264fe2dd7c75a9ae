"""Ends the process if its event loop is stuck in a computation: what runs there for ever would hold up every
request, and the supervisor's next start holds up none.

It is processor time that is counted, so that a machine which is asleep, overloaded or being debugged ends
nothing.
"""

import faulthandler
import signal

STUCK_S = 60.0  # of processor time; no turn of the loop takes a hundredth of it


def watch() -> None:
    """Begin: `feed` has to be called before every `STUCK_S` of processor time are over, or the process says
    on standard error where it is and ends by SIGPROF."""
    faulthandler.register(signal.SIGPROF, all_threads=False, chain=True)
    feed()


def feed(seconds: float = STUCK_S) -> None:
    """The loop goes round."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
