"""`python -m mergepipe`."""

from mergepipe.cli import main

main()
