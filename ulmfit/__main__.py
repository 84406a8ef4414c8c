"""python -m ulmfit COMMAND, the same as `ulmfit COMMAND`."""

from ulmfit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
