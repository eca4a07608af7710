"""`accelerate launch -m safeflux.trainer ...`: what `safeflux train ...` does, in several processes."""

import sys

from safeflux.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], prog_name="safeflux")
