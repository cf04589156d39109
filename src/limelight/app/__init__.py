"""A small app in the browser: ask about a picture, sound or video and watch where the words come from."""
