"""`python -m oss_ext`: the command `oss-ext`."""

from oss_ext.cli import main

if __name__ == "__main__":
    main()
