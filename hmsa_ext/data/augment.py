"""Training crops: random scale, place, mirror, colour and blur, the same geometry for the image and its label map.

A crop is drawn first and cut afterwards. :meth:`Augment.draw` turns random numbers into a :class:`Crop`, which is a box
in pixels of the image plus a flip, a colour change and a blur; :meth:`Augment.cut` is then plain arithmetic. Whoever
wants other boxes draws other crops; whoever wants another way to cut gets all that it needs in one record.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hmsa_ext.data.normalise import MEAN
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.types import IGNORE_LABEL, Sample

# Becomes (almost) zero when normalised.
FILL = tuple(round(255 * value) for value in MEAN)

# Luma and the two chroma axes of YIQ.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


@dataclass(frozen=True)
class Crop:
    """What is to be cut from one image.

    box: (y0, x0, y1, x1) in pixels of the image, end excluded; may reach outside. It is resized to the crop's size.
    flip: mirror left and right.
    jitter: factors of brightness, contrast and saturation, and the turn of the hue in whole turns; none: (1, 1, 1, 0).
    sigma: of the Gaussian blur, in pixels of the crop; 0 is none.
    """

    box: tuple[int, int, int, int]
    flip: bool = False
    jitter: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)
    sigma: float = 0.0


@dataclass(frozen=True)
class Augment:
    """Random crops of one size.

    crop: (height, width) in pixels.
    scale: the image is enlarged by a factor drawn evenly from this range.
    flip: mirror half of the crops.
    colour: factors of brightness, contrast and saturation are drawn evenly from [1 - colour, 1 + colour], the turn of
        the hue from [-colour, colour] whole turns.
    blur: largest sigma of a Gaussian blur, drawn evenly from [0, blur] pixels.
    ignore_label: of pixels outside the image; these have the mean colour of ImageNet.

    The image is resized bilinearly, by areas where it shrinks to less than half; the label map takes the nearest pixel
    centre.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    colour: float = 0.25
    blur: float = 0.0
    ignore_label: int = IGNORE_LABEL

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop: expected (height, width) of at least 1 pixel, got {self.crop}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale: expected (low, high) with 0 < low <= high, got {self.scale}")
        if not 0 <= self.colour <= 0.5:
            raise ValueError(f"colour: expected 0..0.5, got {self.colour}")
        if not 0 <= self.blur < math.inf:
            raise ValueError(f"blur: expected a sigma from 0 up, got {self.blur}")
        if not 0 <= self.ignore_label <= 255:
            raise ValueError(f"ignore_label: expected 0..255, got {self.ignore_label}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A random crop of the sample, of exactly the size ``crop``."""
        return self.cut(sample, self.draw(*sample.label.shape, rng))

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Crop:
        """A random crop for an image of this size. Always draws nine numbers, whatever the options."""
        size, y, x, mirror, *change, turn, soft = rng.random(9).tolist()
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * size
        tall, wide = (max(1, round(side / scale)) for side in self.crop)
        y0, x0 = _place(height, tall, y), _place(width, wide, x)
        factors = (1 + self.colour * (2 * value - 1) for value in change)
        return Crop(
            (y0, x0, y0 + tall, x0 + wide),
            self.flip and mirror < 0.5,
            (*factors, self.colour * (2 * turn - 1)),
            self.blur * soft,
        )

    def cut(self, sample: Sample, crop: Crop) -> Sample:
        """The crop as a sample of exactly the size ``crop``. The input is left as it is."""
        height, width = sample.label.shape
        if sample.image.shape != (height, width, 3):
            raise ValueError(
                f"sample {sample.name}: expected an image [{height}, {width}, 3] as its label map has it, "
                f"got {list(sample.image.shape)}"
            )
        y0, x0, y1, x1 = crop.box
        inside = (slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0)))
        # Colours before the margin is added: it keeps its colour, and does not count in the mean of the contrast.
        image = change_colours(sample.image[inside], crop.jitter)
        margins = (max(-y0, 0), max(y1 - height, 0), max(-x0, 0), max(x1 - width, 0))
        label = sample.label[inside]
        if any(margins):
            image = cv2.copyMakeBorder(image, *margins, cv2.BORDER_CONSTANT, value=FILL)
            label = cv2.copyMakeBorder(label, *margins, cv2.BORDER_CONSTANT, value=self.ignore_label)
        image, label = resize(image, label, self.crop)
        if crop.sigma > 0.1:  # below that the neighbours' weight rounds to nothing
            image = cv2.GaussianBlur(image, (0, 0), crop.sigma)
        if crop.flip:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        return Sample(np.ascontiguousarray(image), np.ascontiguousarray(label), sample.name)


def resize(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3] and label map uint8 [H, W], resized together to (height, width): they stay aligned."""
    height, width = label.shape
    if (height, width) == tuple(size):
        return image, label
    # Bilinear weights reach one pixel: when more than two pixels fall into one, most would not be looked at.
    shrinks = height > 2 * size[0] or width > 2 * size[1]
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    # The pixel under the centre of each output pixel, in integers: OpenCV's INTER_NEAREST takes the one under its
    # upper left corner, which moves labels against the image by up to half a pixel.
    rows = (2 * np.arange(size[0]) + 1) * height // (2 * size[0])
    columns = (2 * np.arange(size[1]) + 1) * width // (2 * size[1])
    return resized, label[rows][:, columns]


def change_colours(image: np.ndarray, jitter: tuple[float, float, float, float]) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of an image uint8 [H, W, 3].

    Brightness multiplies, contrast blends with the mean luma of the image, saturation blends with the luma of the
    pixel, hue turns the chroma plane of YIQ. All four are affine in the colour and commute, so that one matrix does all
    of them; unlike in the published chain, their order is nothing to draw and nothing is clipped in between.
    """
    brightness, contrast, saturation, turn = jitter
    if tuple(jitter) == (1.0, 1.0, 1.0, 0.0) or image.size == 0:
        return image
    cosine, sine = saturation * math.cos(math.tau * turn), saturation * math.sin(math.tau * turn)
    turned = _RGB @ np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ _YIQ
    mean = float(_YIQ[0] @ cv2.mean(image)[:3])
    offset = np.full((3, 1), brightness * (1 - contrast) * mean)
    return cv2.transform(image, np.hstack([brightness * contrast * turned, offset]))


def _place(length: int, box: int, chance: float) -> int:
    """Where a box starts: anywhere within the image or, when it is longer, anywhere around it."""
    low, high = min(0, length - box), max(0, length - box)
    return low + int(chance * (high - low + 1))
