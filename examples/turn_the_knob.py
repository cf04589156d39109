"""Vary the trust in the media (alpha) until a misleading hint no longer determines the answer."""

import json
from importlib.resources import files

import limelight

folder = files("limelight.demo") / "vision" / "examples"
adapter = limelight.load("demo-vision")
for example in json.loads((folder / "examples.json").read_text())["examples"][:3]:
    media = {"image": str(folder / example["image"])}
    answers = []
    for alpha in (0.0, 2.0, 8.0):
        strategy = limelight.strategy("relevance-contrastive", alpha=alpha)
        answers.append(
            str(limelight.generate(adapter, messages=example["text"], media=media, strategy=strategy, max_new_tokens=2))
        )
    print(f"{example['text']:60}  true {example['label']:4}  alpha 0, 2, 8: {', '.join(answers)}")
