"""`python -m app` is the console command `shieldx`."""

from app.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
