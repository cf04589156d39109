"""Stream words with the part of each word's logit that comes from the image, measured by the meter."""

from importlib.resources import files

import limelight

picture = next(
    p for p in sorted((files("limelight.demo") / "vision" / "examples").iterdir(), key=str) if str(p).endswith(".png")
)
limelight.generate(
    limelight.load("demo-vision"),
    messages="Describe the picture.",
    media={"image": str(picture)},
    strategy="meter",
    relevance=False,
    max_new_tokens=16,
    on_step=lambda row, step: print(
        f"{step.text:12} {step.contributions['image']:.0%}{'  ?' if step.flagged else ''}", flush=True
    ),
)
