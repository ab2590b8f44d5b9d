"""`python -m deploy` is `headwater`."""

import sys

from deploy.cli import main

sys.exit(main())
