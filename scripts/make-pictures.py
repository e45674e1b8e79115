"""docs/pictures/run.png and trajectory.png from a real run: the viewer, as Chromium draws it.

python scripts/make-pictures.py runs/quickstart
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from playwright.async_api import async_playwright

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


async def main(run: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "solostream", "view", str(run), "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        url = (await server.stdout.readline()).decode().split()[0]
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = await browser.new_page(viewport={"width": 1180, "height": 900})
            for name, path in (("run", "run"), ("trajectory", "trajectories")):
                await page.goto(f"{url}/{path}?run={run.name}")
                await page.wait_for_load_state("networkidle")
                if name == "trajectory":
                    for button in ("Right", "Tool"):
                        await page.get_by_role("button", name=button).first.click()
                    await page.get_by_text("1 call", exact=True).first.click()
                await page.wait_for_timeout(1500)  # curves are drawn
                await page.screenshot(path=PICTURES / f"{name}.png")
            await browser.close()
    finally:
        server.terminate()
        await server.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
