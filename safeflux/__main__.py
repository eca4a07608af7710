"""`python -m safeflux` is the `safeflux` command."""

from safeflux.cli import main

if __name__ == "__main__":
    main(prog_name="safeflux")
