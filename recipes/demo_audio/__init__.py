"""How the audio miniature was made: voices.py, data.py, text.py, model.py, train.py, evaluate.py, ship.py."""
