"""``python -m pol`` is ``pol``."""

import sys

from pol.cli import main

sys.exit(main())
