"""`python -m solostream` is the command `solostream`."""

import sys

from solostream.cli.main import main

sys.exit(main())
