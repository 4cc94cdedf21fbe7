"""The command line: reads what is asked, calls the library, shows what it says. Nothing is decided here.

In: arguments. Out: tables or JSON on standard output; progress and errors on standard error; exit code 2 for
what the user can put right, 1 for what they cannot, 130 after Ctrl-C.
"""

from sned.cli.app import main

__all__ = ["main"]
