"""`python -m medclipsam` is the command `medclipsam`."""

from medclipsam.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
