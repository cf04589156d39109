"""Show which words of the prompt made the model answer yes, and the evidence of the image."""

import json
from importlib.resources import files

import limelight

folder = files("limelight.demo") / "vision" / "examples"
example = json.loads((folder / "examples.json").read_text())["examples"][0]
adapter = limelight.load("demo-vision")
answer = limelight.generate(
    adapter, messages=example["text"], media={"image": str(folder / example["image"])}, max_new_tokens=3
)
relevance = answer.steps[0].relevance
print(f"{example['text']}  ->  {answer}   (true: {example['label']})")
print("shares:", {k: round(v, 2) for k, v in relevance.shares().items()})
for position, token, score in relevance.top(5, "text"):
    print(f"{score:+.2f}  {token!r} at {position}")
