"""From records to numbers: pure functions, apart from loaders and runner."""
