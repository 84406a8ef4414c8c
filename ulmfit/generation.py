"""A trained language model: text generation."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ulmfit import model_folder
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.hub import HubModel, local_folder
from ulmfit.texts import texts_of
from ulmfit.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from ulmfit.model.language_model import LanguageModelNet


class LanguageModel(HubModel, pipeline_tag="text-generation", tags=["language-model"]):
    """A trained language model with its tokenizer."""

    def __init__(self, net: LanguageModelNet, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
        self.net, self.tokenizer, self.config = net, tokenizer, config

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, *, device: str | torch.device | None = None, **hub: Any
    ) -> LanguageModel:
        """Load a run directory, its model/, the output directory of `ulmfit fit`, or "english", the package's model.

        Or the model of that name (OWNER/MODEL) on the hub.

        Args:
            device: of torch; by default the GPU if there is one.
            hub: revision, token and the other options of `hub.local_folder`.

        Raises:
            UserError: it is missing, damaged, or a classifier, or the hub cannot be reached.
        """
        folder = local_folder(path, **hub)
        model = cls(*model_folder.load(folder, "LanguageModel", device))
        model.loaded_from = model_folder.found(folder, language_model=True)
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        model_folder.save(save_directory, self)

    def _card(self, **kwargs: Any) -> str:
        usage = """import ulmfit

lm = ulmfit.LanguageModel.from_pretrained("NAME")
lm.generate("I liked this movie because", max_new_tokens=40, temperature=0.75)
"""
        return model_folder.card_of(self, usage, self.config | {"task": "language_model"}, kwargs)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; the first match is used
        self,
        prompt: str,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        min_p: float | None = ...,
        seed: int | None = ...,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        min_p: float | None = ...,
        seed: int | None = ...,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        max_new_tokens: int = 40,
        temperature: float = 0.75,
        top_k: int | None = None,
        min_p: float | None = None,
        seed: int | None = None,
    ) -> str | list[str]:
        """Continue a prompt, or each of several prompts.

        Args:
            max_new_tokens: tokens (words) to add, including special tokens.
            temperature: below 1 for more probable text; 0 always takes the most probable word.
            top_k: sample only from the k most probable words.
            min_p: exclude words with less than min_p times the highest probability.
            seed: the same seed gives the same text; with None each call gives another text.

        Returns:
            The unchanged prompt with its continuation as readable text. Unknown words are never generated.

        Raises:
            UserError: a setting is out of range, or the model reads texts backwards.
        """
        if self.config.get("backwards"):
            raise UserError(
                "this language model reads texts backwards and cannot continue one; "
                "give a model that was trained without --backwards"
            )
        import torch

        try:
            max_new_tokens = operator.index(max_new_tokens)
            seed = None if seed is None else operator.index(seed)  # numpy's numbers too
            if seed is not None and not -(2**63) <= seed < 2**64:  # what torch takes
                raise TypeError
        except TypeError:
            raise UserError(
                f"max_new_tokens is {excerpt(max_new_tokens)} and seed {excerpt(seed)}; give whole numbers, the seed of at most 64 bits"
            ) from None
        try:
            temperature, min_p = float(temperature), None if min_p is None else float(min_p)
            top_k = None if top_k is None else operator.index(top_k)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"temperature is {excerpt(temperature)}, min_p {excerpt(min_p)} and top_k {excerpt(top_k)}; give numbers, top_k a whole one"
            ) from None
        prompts = texts_of(prompt)
        ids = [row.tolist() for row in self.tokenizer.encode(prompts)]
        generator = torch.Generator(self.net.decoder_bias.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        new = self.net.generate_ids(
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            min_p=min_p,
            banned=self.tokenizer.banned_ids,
            generator=generator,
        )
        texts = [_followed(*pair) for pair in zip(prompts, map(self._continuation, ids, new), strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def _continuation(self, ids: list[int], new: list[int]) -> str:
        """The new text after the prompt. It is decoded together with the prompt, because spaces and capitals depend on it."""
        head, whole = self.tokenizer.decode(ids), self.tokenizer.decode(ids + new)
        return whole[len(head) :] if whole.startswith(head) else " " + self.tokenizer.decode(new)


def _followed(prompt: str, text: str) -> str:
    """A prompt and the text behind it, with one space between them."""
    return prompt + (text.lstrip(" ") if prompt[-1:].isspace() else text)
