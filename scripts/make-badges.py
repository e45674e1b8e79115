"""The badges of the README that need no server: docs/pictures/badge-*.svg, drawn from what pyproject.toml says.

python scripts/make-badges.py
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
SIDE, CHARACTER = 7, 6.6  # pixels: beside each text, and of a character at 11 px

BADGE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="20" role="img" aria-label="{name}: {value}">
<title>{name}: {value}</title>
<clipPath id="round"><rect width="{width:.0f}" height="20" rx="3"/></clipPath>
<g clip-path="url(#round)"><path fill="#555" d="M0 0h{middle:.0f}v20H0z"/>
<path fill="#3d5af1" d="M{middle:.0f} 0h{right:.0f}v20H{middle:.0f}z"/></g>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
<text x="{name_at:.1f}" y="14">{name}</text><text x="{value_at:.1f}" y="14">{value}</text></g>
</svg>
"""


def badges() -> dict[str, str]:
    """File name -> SVG."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = [one.rpartition(" ")[2] for one in project["classifiers"] if "Python :: 3." in one]
    facts = {"license": project["license"], "python": " | ".join(versions)}
    return {f"badge-{name}.svg": draw(name, value) for name, value in facts.items()}


def draw(name: str, value: str) -> str:
    middle = 2 * SIDE + CHARACTER * len(name)
    right = 2 * SIDE + CHARACTER * len(value)
    return BADGE.format(
        name=escape(name),
        value=escape(value),
        width=middle + right,
        middle=middle,
        right=right,
        name_at=middle / 2,
        value_at=middle + right / 2,
    )


if __name__ == "__main__":
    for file, svg in badges().items():
        (PICTURES / file).write_text(svg, encoding="utf-8")
