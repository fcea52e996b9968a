"""Prompt enhancement by a language model: behind an OpenAI-compatible endpoint, or from a local folder.

What a model answers is used only where it asks for the same counts of the same nouns; after a second try the rule's
form takes its place.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from numina.errors import InputError, ModelError, NuminaError
from numina.prompts.nouns import counted
from numina.prompts.targets import Target
from pipelines.rewriting.rules import MAX_TOKENS, enhance_prompt, keeps_targets, token_bound

Message = dict[str, str]

INSTRUCTIONS = (
    "You rewrite prompts for a text-to-video model so that nobody can mistake how many of each object the video shows. "
    "Say every count as a number word directly before its noun, and say it once more in digits. Keep each noun in the "
    "words of the prompt, and keep subject, action and place. Say that the objects are separate, fully visible and the "
    "same in number in all of the video. Add no other countable objects and no other numbers. Answer with the new "
    "prompt alone: one paragraph of at most 120 words, without quotes or comments."
)
ANSWER_TOKENS = 400
TRIES = 2  # of a prompt, until its counts are kept
RETRIES = 4  # of a request that got no answer, by the client, with growing pauses

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_AROUND = re.compile(r"^[\s\"'“”`]+|[\s\"'“”`]+$")


class Writer(Protocol):
    """A language model that answers a conversation."""

    name: str  # as `enhanced_by` says it
    model: str  # what answers depend on

    def answer(self, messages: Sequence[Message]) -> str:
        """The model's next message. Raises InputError for what asking again can't mend, NuminaError for what stops
        all asking, ValueError where this one conversation is refused."""


def rewritten(writer: Writer, prompt: str, targets: Sequence[Target]) -> tuple[str, str]:
    """The prompt as the model rewrites it and the model's name, or the rule's form and `rules`. A prompt that asks for
    no count stays as it is, and the model isn't asked."""
    if not targets:
        return prompt, "rules"
    asked = ", ".join(counted(target.noun, target.count) for target in targets)
    messages = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": f"Prompt: {prompt}\nCounts to keep: {asked}"},
    ]
    for _ in range(TRIES):
        try:
            answer = writer.answer(messages)
        except ValueError as error:
            if isinstance(error, NuminaError):
                raise
            break
        text = cleaned(answer)
        if text and token_bound(text) <= MAX_TOKENS and keeps_targets(text, targets):
            return text, writer.name
        again = f"That prompt must be at most 120 words and ask for exactly {asked}, in these words. Write it again."
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": again}]
    return enhance_prompt(prompt, targets), "rules"


def cleaned(answer: str) -> str:
    """An answer without thoughts, quotes and line breaks."""
    return " ".join(_AROUND.sub("", without_thoughts(answer)).split())


def without_thoughts(answer: str) -> str:
    """An answer without what a reasoning model wrote before it."""
    return _THOUGHTS.sub("", answer)


@dataclass(kw_only=True)
class EndpointWriter:
    """A model behind an OpenAI-compatible chat endpoint; the key comes from OPENAI_API_KEY, where it takes one."""

    url: str  # e.g. http://127.0.0.1:8000/v1
    model: str
    timeout: float = 120.0  # seconds, for one answer
    name: str = "endpoint"

    def answer(self, messages: Sequence[Message]) -> str:
        import openai

        try:
            chosen = self._client.chat.completions.create(
                model=self.model, messages=list(messages), temperature=0, max_tokens=ANSWER_TOKENS
            ).choices
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise InputError(
                f"{self.url} refuses model {self.model!r}: {self._told(error)}; check --url, --model and OPENAI_API_KEY"
            ) from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise ValueError(self._told(error)) from None
        except openai.OpenAIError as error:
            raise NuminaError(
                f"{self.url} doesn't answer: {self._told(error)}; answers so far are saved; the same command continues"
            ) from None
        return (chosen[0].message.content if chosen else None) or ""

    @cached_property
    def _client(self) -> Any:
        import openai

        key = os.environ.get("OPENAI_API_KEY") or "none"
        return openai.OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=RETRIES)

    def _told(self, error: Exception) -> str:
        """The error without the key."""
        key = os.environ.get("OPENAI_API_KEY")
        return str(error).replace(key, "…") if key else str(error)


@dataclass(kw_only=True)
class LocalWriter:
    """A causal language model of transformers in a local folder, read from safetensors, without code of its own."""

    folder: str
    device: str = "auto"  # auto: the first GPU, where there is one
    name: str = "local"
    cue: str = "New prompt:"  # begins the answer of a model that has no chat template
    model: str = field(init=False)

    def __post_init__(self) -> None:
        self.model = str(Path(self.folder).resolve())
        if not (Path(self.folder) / "config.json").is_file():
            raise ModelError(f"--model {self.folder!r} has no config.json; give a folder of a transformers model")

    def answer(self, messages: Sequence[Message]) -> str:
        tokenizer, model = self._loaded
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join(message["content"] for message in messages) + f"\n\n{self.cue}"
        given = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template).to(model.device)
        longest = getattr(model.config, "max_position_embeddings", None)
        length = given["input_ids"].shape[1]
        room = ANSWER_TOKENS if longest is None else min(ANSWER_TOKENS, longest - length)
        if room < 1:
            raise ValueError(f"{length} tokens leave no room for an answer in {longest}")
        ended = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        ids = model.generate(**given, max_new_tokens=room, do_sample=False, pad_token_id=ended)
        return str(tokenizer.decode(ids[0, length:], skip_special_tokens=True))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                self.folder, use_safetensors=True, dtype="auto", local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"--model {self.folder!r} can't be loaded: {error}; give a folder with safetensors"
            ) from error
        return tokenizer, model.to(device).eval()
