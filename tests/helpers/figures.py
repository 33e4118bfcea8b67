"""What a reader of a figure stumbles over: texts that lie on each other, or are cut off."""

from collections.abc import Iterator

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts of a figure that cover each other, as drawn."""
    boxes = [(text, box.shrunk(0.98, 0.9)) for text, box in _drawn_texts(figure)]
    return [
        (text, other)
        for number, (text, box) in enumerate(boxes)
        for other, beside in boxes[number + 1 :]
        if box.overlaps(beside)
    ]


def texts_outside(figure: Figure) -> list[str]:
    """Texts that the picture cuts off."""
    width, height = figure.bbox.width, figure.bbox.height
    return [
        text
        for text, box in _drawn_texts(figure)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]


def _drawn_texts(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    left_out = set()  # of the marks that an axis has ready, those beyond its ends
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:  # type: ignore[attr-defined]
                    left_out |= {tick.label1, tick.label2}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip() and text not in left_out:
            yield text.get_text(), text.get_window_extent(renderer)
