"""`python -m monitor_plugin.cli` is `monitor-plugin`."""

import sys

from .main import main

sys.exit(main())
