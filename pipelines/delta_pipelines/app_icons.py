"""The app's icons, drawn: four triangles, the near one inside the far one, in the colors of `spectral`."""

from io import BytesIO

from PIL import Image, ImageDraw

SIDE = 64  # of the drawing, as in app/web/icons/icon.svg
GROUND = "#12141a"
TRIANGLES = (  # color, top, then the base's left, right and y
    ("#5e4fa2", (32, 11), (9, 55, 51)),
    ("#66c2a5", (32, 20.5), (15.5, 48.5, 49)),
    ("#fee08b", (32, 29), (21.5, 42.5, 47)),
    ("#d53e4f", (32, 37), (27, 37, 45.5)),
)
CORNER = 15
SAFE = 0.78  # of a maskable icon: what no system cuts away
SMOOTHING = 4  # drawn this much larger, then scaled down


def icon_png(side_px: int, *, maskable: bool = False) -> bytes:
    """Draw the icon as PNG; a maskable one fills its square, and keeps the drawing where no mask reaches."""
    scale = side_px * SMOOTHING / SIDE
    image = Image.new("RGBA", (side_px * SMOOTHING, side_px * SMOOTHING), GROUND if maskable else (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    if not maskable:
        draw.rounded_rectangle((0, 0, *image.size), CORNER * scale, fill=GROUND)
    shrink = SAFE if maskable else 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (SIDE / 2 + (x - SIDE / 2) * shrink) * scale, (SIDE / 2 + (y - SIDE / 2) * shrink) * scale

    for color, top, (left, right, base) in TRIANGLES:
        draw.polygon([place(*top), place(right, base), place(left, base)], fill=color)
    content = BytesIO()
    image.resize((side_px, side_px), Image.Resampling.LANCZOS).save(content, "PNG", optimize=True)
    return content.getvalue()
