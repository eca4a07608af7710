"""`python -m safeflux.trainer ...`: the same as `safeflux train ...`."""

import sys

from safeflux.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], prog_name="safeflux")
