"""Draws the objects' icons once, from the Noto Color Emoji font (Debian: fonts-noto-color-emoji)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
TARGET = Path(__file__).parents[2] / "src/limelight/demo/vision/icons"
EMOJI = {
    "cup": "☕", "pizza": "🍕", "banana": "🍌", "strawberry": "🍓", "pig": "🐷", "chicken": "🐔", "tractor": "🚜",
    "horse": "🐴", "frog": "🐸", "tree": "🌳", "mushroom": "🍄", "butterfly": "🦋", "clock": "⏰", "book": "📗",
    "key": "🔑", "hat": "🎩", "boat": "⛵", "fish": "🐠", "crab": "🦀", "dog": "🐶", "ball": "⚽", "house": "🏠",
}  # fmt: skip
SIDE = 72


def main() -> None:
    font = ImageFont.truetype(str(FONT), 109)  # the one bitmap strike the font has
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, emoji in EMOJI.items():
        large = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(large).text((10, 10), emoji, font=font, embedded_color=True)
        tight = large.crop(large.getbbox())
        square = Image.new("RGBA", (max(tight.size), max(tight.size)))
        square.paste(tight, ((square.width - tight.width) // 2, (square.height - tight.height) // 2))
        square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(TARGET / f"{name}.png", optimize=True)
    print(f"{len(EMOJI)} icons in {TARGET}")


if __name__ == "__main__":
    main()
