"""Two kinds of plots as SVG text: bars on a logarithmic scale, and who has the turn when."""

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#0b6e4f", "#b3432b", "#d98324", "#5f7fb5", "#8a6fae", "#6f6f6f", "#b5a642", "#3f9aa6")
WIDTH, LEFT, RIGHT = 760, 150, 70
BAR, GAP = 11, 12


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _line(x: float, top: float, bottom: float) -> str:
    return f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}" stroke="#ddd"/>'


def _legend(names: Sequence[str], y: float) -> list[str]:
    parts, x = [], float(LEFT)
    for name, colour in zip(names, COLOURS, strict=False):
        parts += [_rect(x, y - 9, 10, 10, colour), _text(x + 14, y, name)]
        x += 30 + 6.5 * len(name)
    return parts


def _picture(height: float, title: str, parts: Sequence[str]) -> str:
    """White behind it: a page may be dark."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'font-family="sans-serif" fill="#222" role="img">'
    )
    frame = [f"<title>{escape(title)}</title>", _rect(0, 0, WIDTH, height, "#fff")]
    return "\n".join([head, *frame, _text(10, 20, title, size=14), *parts, "</svg>", ""])


def bars(
    title: str, groups: Mapping[str, Mapping[str, float]], least: float, words: Mapping[float, str]
) -> str:
    """A group of bars for each name. The scale is logarithmic, from `least` to the largest of `words`."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    scale = (WIDTH - LEFT - RIGHT) / math.log(max(words) / least)

    def x_of(value: float) -> float:
        return LEFT + scale * math.log(max(value, least) / least)

    top = 58.0
    y, parts = top, _legend(names, 42)
    drawn = []
    for name, group in groups.items():
        drawn.append(_text(LEFT - 8, y + BAR * len(group) / 2 + 4, name, "end"))
        for rule, value in group.items():
            colour = COLOURS[names.index(rule)]
            drawn.append(_rect(LEFT, y, max(1.5, x_of(value) - LEFT), BAR - 2, colour))
            drawn.append(_text(x_of(value) + 4, y + BAR - 3, _short(value), size=9))
            y += BAR
        y += GAP
    for tick, label in words.items():
        parts += [_line(x_of(tick), top - 4, y), _text(x_of(tick), y + 14, label, "middle")]
    return _picture(y + 26, title, [*parts, *drawn])


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def turns(title: str, rows: Mapping[str, Sequence[tuple[float, float, str]]], hours: float) -> str:
    """For each row, who has the turn: (from, until, name) in seconds. White is nobody."""
    names = sorted({name for row in rows.values() for _, _, name in row})
    scale = (WIDTH - LEFT - RIGHT) / (hours * 3600)
    top, height = 58.0, 26
    parts = _legend(names, 42)
    bottom = top + len(rows) * (height + GAP)
    for hour in range(math.floor(hours) + 1):
        x = LEFT + hour * 3600 * scale
        parts += [_line(x, top - 4, bottom), _text(x, bottom + 14, f"{hour} h", "middle")]
    for number, (row, spans) in enumerate(rows.items()):
        y = top + number * (height + GAP)
        parts.append(_text(LEFT - 8, y + height / 2 + 4, row, "end"))
        for begin, end, name in spans:
            width = max(0.3, (end - begin) * scale)
            parts.append(_rect(LEFT + begin * scale, y, width, height, COLOURS[names.index(name)]))
    return _picture(bottom + 26, title, parts)
