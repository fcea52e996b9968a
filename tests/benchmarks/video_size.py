"""How many bits a pixel of an mp4 takes, by crf: what `numina plan` reckons an output's videos with.

    python -m tests.benchmarks.video_size

The clips are pans and zooms over the two photographs that scikit-learn ships, 81 frames of 256×448 cut out of them at
their own sharpness. Generated videos differ: flat ones take less, grain and fast motion more. `noise` is the most.
"""

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from pipelines.video.mp4 import Video, encode_mp4

FRAMES, HEIGHT, WIDTH = 81, 256, 448
CRFS = (12, 18, 24, 30)


def pan(photo: np.ndarray, pixels: float) -> Video:
    """A camera that moves over a photograph, so many pixels a frame at most, there and back."""
    room = np.array(photo.shape[:2]) - (HEIGHT, WIDTH)
    share = np.minimum(1.0, pixels * FRAMES / 2 / np.maximum(room, 1))
    ways = (1 - np.cos(np.linspace(0, 2 * np.pi, FRAMES))) / 2
    corners = [np.round(room * share * way).astype(int) for way in ways]
    return np.stack([photo[y : y + HEIGHT, x : x + WIDTH] for y, x in corners])


def zoom(photo: np.ndarray, factor: float) -> Video:
    """A camera that comes nearer."""
    image, frames = Image.fromarray(photo), []
    for way in np.linspace(1, factor, FRAMES):
        height, width = HEIGHT / way, WIDTH / way
        y, x = (photo.shape[0] - height) / 2, (photo.shape[1] - width) / 2
        box = (x, y, x + width, y + height)
        frames.append(np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)))
    return np.stack(frames)


def main() -> None:
    clips = {"noise": np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)}
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        clips |= {f"{name} pan 1": pan(photo, 1), f"{name} pan 3": pan(photo, 3), f"{name} zoom": zoom(photo, 1.2)}
    print(f"{'bits per pixel':16}" + "".join(f"  crf {crf:2}" for crf in CRFS))
    sums = []
    for name, clip in clips.items():
        bits = [8 * len(encode_mp4(clip, fps=16, crf=crf)) / clip[..., 0].size for crf in CRFS]
        print(f"{name:16}" + "".join(f"{own:8.3f}" for own in bits), flush=True)
        if name != "noise":
            sums.append(bits)
    print(f"{'mean of photos':16}" + "".join(f"{own:8.3f}" for own in np.mean(sums, axis=0)))


if __name__ == "__main__":
    main()
