"""`python -m fairslice`."""

import sys

from fairslice.cli import main

sys.exit(main())
