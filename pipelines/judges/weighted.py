"""What judges with weights share: a folder's processor and model on this process's device, and what names them."""

from typing import Any

from pipelines.judges.base import JudgeConfig
from pipelines.judges.images import Normalisation
from pipelines.judges.passes import device_of, dtype_of
from pipelines.judges.weights import digest_of, judge_folder, load_parts


class WeightedJudge:
    """The part of a `Judge` that all of them have."""

    model_class: str  # of transformers

    def __init__(self, config: JudgeConfig) -> None:
        import transformers  # takes seconds

        self.config, self.device = config, device_of(config)
        self.dtype = dtype_of(config, self.device)
        folder = judge_folder(config)
        self.weights = digest_of(folder)
        model_class = getattr(transformers, self.model_class)
        self.processor, self.model = load_parts(model_class, folder, self.dtype, self.device)
        self.normalise = Normalisation.of(self.processor.image_processor)

    @property
    def settings(self) -> dict[str, Any]:
        """Those that decide its verdicts, whatever it looks for."""
        return {
            "kind": self.config.kind,
            "weights": self.weights,
            "dtype": str(self.dtype).removeprefix("torch."),
            "every": self.config.every,
        }
