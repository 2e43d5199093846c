"""``python -m signaling``: the same as the command ``signaling``."""

from signaling.app.command import main

if __name__ == "__main__":
    main()
