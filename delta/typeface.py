"""Text in pictures, with the one typeface that Pillow carries: the same on every machine, whatever fonts it has."""

import unicodedata

from PIL import ImageDraw, ImageFont

BEYOND_ASCII = "±°·"  # what the typeface has of the signs that captions use; it lacks even é and ×
SPELLED_OUT = str.maketrans(
    {
        "×": "x",
        "−": "-",
        "–": "-",
        "—": "-",
        "→": "->",
        "≤": "<=",
        "≥": ">=",
        "≈": "~",
        "δ": "delta",
        "Δ": "Delta",
        "µ": "u",
    }
)
LINE_HEIGHT = 1.35  # of the size
SPACE_WIDTH = 0.32  # of the size; the typeface's own space is 0.2, and kerning takes from that


class Typeface:
    """Pillow's typeface at one size. It has few letters beyond ASCII: those it lacks are spelled out, or become "?"."""

    def __init__(self, size_px: float) -> None:
        self.line_px = round(size_px * LINE_HEIGHT)
        self._font = ImageFont.load_default(size=round(size_px))
        self._space_px = size_px * SPACE_WIDTH

    def width(self, words: str) -> float:
        """Measure a line in pixels."""
        parts = words.split()
        return sum(self._font.getlength(part) for part in parts) + self._space_px * max(len(parts) - 1, 0)

    def wrap(self, text: str, width_px: int) -> list[str]:
        """Break a text into lines that fit, in letters that the typeface has; a single word may stick out."""
        lines: list[str] = []
        for word in self._spell(text).split():
            if lines and self.width(f"{lines[-1]} {word}") <= width_px:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines

    def write(self, draw: ImageDraw.ImageDraw, line: str, left: float, middle: float, color: str) -> None:
        """Draw one line from `left`, centered on the height `middle`."""
        for word in line.split():
            draw.text((left, middle), word, font=self._font, fill=color, anchor="lm")
            left += self._font.getlength(word) + self._space_px

    def _spell(self, text: str) -> str:
        plain = unicodedata.normalize("NFKD", text.translate(SPELLED_OUT))
        kept = (letter for letter in plain if not unicodedata.combining(letter))
        return "".join(letter if letter.isascii() or letter in BEYOND_ASCII else "?" for letter in kept)
