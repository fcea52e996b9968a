"""How much of a prompt a checkpoint's text encoder takes, asked of its tokenizer alone: nothing else is loaded."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numina.prompts.tokens import locate_tokens
from pipelines.base import ModelFacts, prompt_offsets, rest_of
from pipelines.checkpoints.files import read_json
from pipelines.models.families import FAMILIES
from pipelines.models.registry import adapter_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numina.prompts.targets import Target


class TextLimit:
    """A checkpoint's tokenizer, and the number of tokens after which its prompts are cut."""

    def __init__(self, model: ModelFacts) -> None:
        self._folder = Path(model.path)
        self._family = FAMILIES[model.family]

    def cut(self, prompt: str) -> str:
        """The end of a prompt that the text encoder isn't given; empty for a prompt that fits."""
        return self._cleaned_cut(prompt)[1]

    def check_nouns(self, prompt: str, targets: Sequence[Target]) -> None:
        """Raises PromptError where a target's noun is cut off, or has no token of its own.

        Scripts that part words by spaces have one for every word: these are looked at only where the prompt is cut.
        """
        if self._cleaned_cut(prompt)[1] or not all(target.noun.isascii() for target in targets):
            cleaned = self._clean(prompt)
            locate_tokens(cleaned, targets, prompt_offsets(self._tokenizer.encode(cleaned).offsets), self._clean)

    @cached_property
    def tokens(self) -> int:
        """How many a prompt may have, the end token included."""
        config = self._folder / "tokenizer" / "tokenizer_config.json"
        own = read_json(config).get("model_max_length") if config.is_file() else None
        return min(int(own or self._family.text_tokens), self._family.text_tokens)

    @cached_property
    def _tokenizer(self) -> Any:
        """Of the library tokenizers, which is quick to import; where its file isn't there, transformers makes it."""
        file = self._folder / "tokenizer" / "tokenizer.json"
        if file.is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            loaded: Any = AutoTokenizer.from_pretrained(self._folder / "tokenizer", local_files_only=True)
            tokenizer = loaded.backend_tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.tokens)
        return tokenizer

    def _cleaned_cut(self, prompt: str) -> tuple[str, str]:
        """The prompt as it is tokenized, and its end that isn't."""
        # A token is a byte at least: most prompts are too short to be looked at. Other scripts may be spelled out.
        if (prompt.isascii() and len(prompt) + 2 <= self.tokens) or not self._rest(prompt):
            return prompt, ""
        cleaned = self._clean(prompt)
        return cleaned, self._rest(cleaned)

    @property
    def _clean(self) -> Callable[[str], str]:
        """What the pipeline does to a prompt. It takes seconds to import: for long prompts, and some scripts, alone."""
        return adapter_of(self._folder).kinds.clean

    def _rest(self, prompt: str) -> str:
        tokens = self._tokenizer.encode(prompt)
        return rest_of(prompt, tokens.offsets) if tokens.overflowing else ""


def told(what: str, text: str, cut: str, tokens: int) -> str:
    """The warning of a text that is cut, with what is cut."""
    return (
        f"the {what} {text[:60]!r}… is longer than the text encoder's {tokens} tokens; it is generated without {cut!r}"
    )
