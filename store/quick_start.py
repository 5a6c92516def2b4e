"""Imported before anything else by whatever starts a process: the garbage collector looks seldom while there is little
to find.

An import makes objects by the hundred thousand and none of them is garbage; to look through them after every 700 new
ones takes a sixth of a command's start and a quarter of ``import torch``. In a process that stays,
``store.interpreter`` settles it once all is built.
"""

import gc

gc.set_threshold(50_000, 50, 50)
