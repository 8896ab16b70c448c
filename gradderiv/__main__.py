"""``python -m gradderiv`` and the ``gradderiv`` command."""

from gradderiv.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
