"""``python -m limelight``: the command line."""

from limelight.cli.main import app

app(prog_name="limelight")
