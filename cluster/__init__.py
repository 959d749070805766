"""Ray, as this project uses it: joined or started once, asked for what a run needs, told of its figures."""

import os

# Ray passes on to the driver only one of several ranks' lines that differ in nothing but numbers, as the
# stacks of ranks that hang do; it reads this where it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_ALLOW_REGEX", r"^rank \d+[:|] ")
