"""`python -m shardkit` is the command `shardkit`."""

import sys

from shardkit_cli.main import main

sys.exit(main())
