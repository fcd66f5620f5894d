"""`python -m vggkit`."""

from vggkit.cli.main import main

main()
