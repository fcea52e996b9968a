"""Whether a VAE in bfloat16 gives clips that count as in float32: true clips of the embedded worlds, there and back.

    python -m tests.benchmarks.decode_counts --clips 100

Latents are encoded in float32. Printed: share of clips and of frames whose counts are equal, and PSNR between the two.
"""

import argparse

import numpy as np
import torch

from pipelines.checkpoints.embedded import EMBEDDED
from pipelines.testbed.evaluate import counts
from pipelines.testbed.model import load_pipeline
from pipelines.testbed.world import to_uint8
from pipelines.testbed.worlds import MODELS
from pipelines.video.layers import fast_layers

BATCH = 10


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print("world       clips  clips equal  frames equal  PSNR [dB]")
    for name, world in MODELS.items():
        pipeline = load_pipeline(EMBEDDED[name], device=device)
        drawn, truth = world.clips(options.clips, 0, split="all")
        decoded: dict[torch.dtype, list[np.ndarray]] = {torch.float32: [], torch.bfloat16: []}
        latents = []
        for first in range(0, len(truth), BATCH):
            video = torch.from_numpy(truth[first : first + BATCH]).to(device).permute(0, 4, 1, 2, 3)
            latents.append(pipeline.vae.encode(video / 127.5 - 1).latent_dist.mean)
        for dtype, videos in decoded.items():
            vae = pipeline.vae.to(dtype)
            with fast_layers(vae.decoder, on_gpu=True):
                videos += [to_uint8(vae.decode(own.to(dtype)).sample.float()) for own in latents]
        one, other = (np.concatenate(videos) for videos in decoded.values())
        found = list(zip(counts(one, drawn), counts(other, drawn), strict=True))
        frames = np.concatenate([(a == b).reshape(len(a), -1).all(-1) for a, b in found])
        clips = np.mean([np.array_equal(a, b) for a, b in found])
        error = np.mean(np.square(one.astype(np.float32) - other.astype(np.float32)))
        psnr = 10 * np.log10(255**2 / error)
        print(f"{name:10} {len(truth):6} {clips:12.3f} {frames.mean():13.4f} {psnr:10.1f}", flush=True)


if __name__ == "__main__":
    main()
