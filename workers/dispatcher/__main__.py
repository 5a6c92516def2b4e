"""``python -m headrace.workers.dispatcher``: the dispatcher as a process."""

import sys

from headrace.workers.dispatcher.dispatcher import main

sys.exit(main())
