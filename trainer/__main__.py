"""`accelerate launch -m safeflux.trainer ...`: the same as `safeflux train ...`, in several processes."""

import sys

from safeflux.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], prog_name="safeflux")
