"""Pictures inside a page or a file."""

import base64
from io import BytesIO

from PIL import Image

WHOLE = 256
"""Pixels a side up to which a picture is put into a page as it is."""
LARGEST = 512
"""Pixels a side of the others, at most."""


def png(image: Image.Image) -> bytes:
    """Encode a picture; the same picture gives the same bytes."""
    return _encoded(image, "PNG", optimize=True)


def data_uri(image: Image.Image) -> str:
    """A picture as the `src` of an `img`: small ones bit for bit, larger ones scaled to `LARGEST` pixels, as JPEG."""
    if max(image.size) <= WHOLE:
        return png_uri(png(image))
    smaller = image.convert("RGB")
    smaller.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return f"data:image/jpeg;base64,{base64.b64encode(_encoded(smaller, 'JPEG', quality=88)).decode()}"


def png_uri(data: bytes) -> str:
    """A PNG file as the `src` of an `img`."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
