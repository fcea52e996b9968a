"""What a real browser shows of a clip's colours."""

import base64
from typing import Any

import numpy as np
import pytest

from pipelines.video.mp4 import encode_mp4

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (220, 40, 40))
SHOWN = """async source => {
    const video = document.createElement('video');
    video.muted = true;
    video.src = 'data:video/mp4;base64,' + source;
    await new Promise((resolve, reject) => { video.onloadeddata = resolve; video.onerror = reject; });
    await new Promise(resolve => { video.onseeked = resolve; video.currentTime = 0.2; });
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext('2d');
    const middle = place => [...context.getImageData(64 * place + 32, video.videoHeight / 2, 1, 1).data].slice(0, 3);
    const places = [0, 1, 2, 3];
    for (let wait = 0; wait < 600; wait++) {  // a seek may end before a frame is there to draw: then all is black
        context.drawImage(video, 0, 0);
        if (places.every(place => middle(place).some(value => value > 0))) break;
        await new Promise(resolve => setTimeout(resolve, 50));
    }
    return places.map(middle);
}"""


@pytest.mark.parametrize("height", [480, 720, 1088])
def test_a_browser_shows_the_colours_of_a_clip(chromium: Any, height: int) -> None:
    """On both sides of 720 lines, where a browser takes an untagged clip for another standard: reds within 4 levels,
    where that would be 20. Chromium on a CPU computes in few bits, which takes 12 levels of a full blue."""
    bars = np.repeat(np.array(COLOURS, np.uint8), 64, 0)
    mp4 = encode_mp4(np.broadcast_to(bars, (5, height, len(bars), 3)).copy(), fps=8, crf=4)
    page = chromium.new_page()
    shown = page.evaluate(SHOWN, base64.b64encode(mp4).decode())
    page.close()
    apart = np.abs(np.array(shown) - np.array(COLOURS)).max(1)
    assert (apart <= [4, 13, 13, 4]).all(), shown
