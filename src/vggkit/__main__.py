"""`python -m vggkit`."""

from vggkit.interfaces.cli import main

main()
