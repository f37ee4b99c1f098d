"""``python -m samestep`` is the command samestep."""

import sys

from samestep.cli.main import main

sys.exit(main())
