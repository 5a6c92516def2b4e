"""``python -m workers.dispatcher``: the dispatcher as a process."""

import sys

from workers.dispatcher.dispatcher import main

sys.exit(main())
