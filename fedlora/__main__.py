"""`python -m fedlora` is the command `fedlora`."""

import sys

from fedlora.cli import main

sys.exit(main())
