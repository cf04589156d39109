"""How the vision miniature was made: icons.py, data.py, model.py, train.py, evaluate.py."""
