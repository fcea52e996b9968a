"""How many numbers the published checkpoints' weights hold, by diffusers' and transformers' own classes.

    python -m tests.benchmarks.published            # prints them; needs no weights and no GPU
    python -m tests.benchmarks.published --write    # and writes them into pipelines/models/published/

Modules are built from the configs that are shipped there, on fake tensors. A test holds the files against them, and the
sums against the bytes of Wan2.1-T2V-1.3B's files on the hub (commit 0fad780a534b6463e45facd96134c9f345acfa5b).
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import transformers
from accelerate import init_empty_weights

from pipelines.models import published

FOLDER = Path(published.__file__).parent / "published"
TIED = "encoder.embed_tokens.weight"  # transformers holds it apart; files have it once, as shared.weight
ENCODERS = {
    "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
    "t5": (transformers.T5Config, transformers.T5EncoderModel),
}


def numbers(config: dict[str, Any]) -> dict[str, int]:
    """All numbers of a part's weights, and the most of a block or an embedding."""
    with init_empty_weights():
        if "model_type" in config:
            settings, kind = ENCODERS[config["model_type"]]
            module = kind(settings.from_dict(config))
        else:
            module = getattr(diffusers, config["_class_name"]).from_config(config)
    blocks: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        numbered = re.match(r".*?\.\d+\.", name)
        if name != TIED:
            blocks[numbered[0] if numbered else name.rpartition(".")[0]] += parameter.numel()
    return {"parameters": blocks.total(), "largest": max(blocks.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for file in sorted(FOLDER.glob("*.json")):
        content = json.loads(file.read_text())
        for part, stored in content["weights"].items():
            stored |= numbers(content["configs"][part])
            print(f"{content['repository']:36} {part:13} {stored['parameters']:15,} {stored['largest']:14,}")
        if options.write:
            file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
