"""`python -m monitor_plugin.cli` is `monitor-plugin`."""

import sys

from . import main

sys.exit(main())
