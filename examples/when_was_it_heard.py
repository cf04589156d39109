"""Find the seconds of a recording that each word of a caption comes from. Needs `pip install 'limelight[audio]'`.

Run: python examples/when_was_it_heard.py
"""

import limelight
from limelight.demo.sound_language import DESCRIBE
from limelight.demo.sounds import recording, render
from limelight.report.word_times import word_interval
from limelight.report.words import word_relevance, words

adapter = limelight.load("demo-audio")
one = recording("demo", "events", "clear", 2)  # one to three everyday sounds at known times
for event in one.events:
    print(f"in truth  {event.name:>8} {event.onset:.1f}-{event.offset:.1f} s")
said = limelight.generate(adapter, messages=DESCRIBE, media={"audio": (render(one), 16000)}, max_new_tokens=20)
print(said.text)
for word in words(said):
    place = word_interval(word_relevance(said, word))
    if place is not None and word.text.isalpha():
        print(f"half of the support of {word.text:>8} lies in {place[0]:.1f}-{place[1]:.1f} s")
