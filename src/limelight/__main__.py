"""``python -m limelight`` is the command line."""

from limelight.cli.main import app

app()
