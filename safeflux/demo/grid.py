"""The demo's picture: for every section the same prompts before and after, in one labelled PNG."""

from PIL import Image, ImageDraw, ImageFont

from safeflux.demo.result import DemoResult, Section
from safeflux.pages.pairs import percent

COLUMNS = 8
_SIDE = 96
_GAP = 8
_MARGIN = 20
_LABEL = 64
_HEADING = 30
_CAPTION = 46
_WIDTH = 2 * _MARGIN + _LABEL + COLUMNS * (_SIDE + _GAP) - _GAP
_SECTION = _HEADING + 2 * (_SIDE + _GAP) + _CAPTION
_TITLE = 64
_INK, _FAINT, _PAPER, _LINE = "#1a1c20", "#5c6370", "#ffffff", "#d9dce1"


def draw_grid(result: DemoResult) -> Image.Image:
    """Draw the first pictures of each section, none chosen: above before, below after `guard`, labelled."""
    image = Image.new("RGB", (_WIDTH, _TITLE + len(result.sections) * _SECTION + _MARGIN // 2), _PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((_MARGIN, 14), f"emoji-flux before and after the policy {result.policy.name!r}", _INK, _font(20))
    pen.text((_MARGIN, 40), "Same prompts, same noise; the first of each kind, none chosen.", _FAINT, _font(13))
    for k, section in enumerate(result.sections):
        _draw_section(image, _TITLE + k * _SECTION, section)
    return image


def thing_of(prompt: str) -> str:
    """The part of a prompt that names what to draw, without style and background."""
    return prompt.partition(",")[0]


def _draw_section(image: Image.Image, top: int, section: Section) -> None:
    pen = ImageDraw.Draw(image)
    pen.line((_MARGIN, top, _WIDTH - _MARGIN, top), _LINE)
    rates = f"{percent(section.base.value)} before, {percent(section.guarded.value)} after (n = {section.base.n})"
    pen.text((_MARGIN, top + 8), f"{section.title}: {rates}", _INK, _font(15))
    top += _HEADING
    for row, label in enumerate(("before", "after")):
        middle = top + row * (_SIDE + _GAP) + _SIDE // 2
        pen.text((_MARGIN, middle), label, _FAINT, _font(14), anchor="lm")
    for column, pair in enumerate(section.pairs[:COLUMNS]):
        left = _MARGIN + _LABEL + column * (_SIDE + _GAP)
        for row, picture in enumerate((pair.before, pair.after)):
            tile = picture.image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
            place = (left, top + row * (_SIDE + _GAP))
            pen.rectangle((place[0] - 1, place[1] - 1, place[0] + _SIDE, place[1] + _SIDE), outline=_LINE)
            image.paste(tile, place)
        caption = _wrap(thing_of(pair.ask.prompt), _font(12))
        middle = left + _SIDE // 2
        pen.multiline_text(
            (middle, top + 2 * (_SIDE + _GAP) - 4), caption, _FAINT, _font(12), "ma", spacing=1, align="center"
        )


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Break a caption where it would be wider than its picture."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > _SIDE:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # comes with Pillow, so that every machine draws the same
