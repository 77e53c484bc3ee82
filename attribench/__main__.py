"""``python -m attribench``."""

import sys

from attribench.cli import main

sys.exit(main())
