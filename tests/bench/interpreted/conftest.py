"""These tests run Triton's interpreter; ``test_unmeasured_variants.py`` gives them a process of their own."""

import os

from support.interpreting import interpreting

collect_ignore_glob = interpreting(os.environ)
