"""Models on the Hugging Face hub: where a name leads to, and what saving and pushing have in common."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, ModelHubMixin, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ulmfit import private_api
from ulmfit.errors import UserError
from ulmfit.excerpts import cut
from ulmfit.files import parse_json, write_text
from ulmfit.paths import as_path

PREFIX = "hf://"  # before a name that is also that of a folder here
#: The files of a model: weights, JSON, the ONNX graph and the card. No code and no pickles are fetched.
FILES = ["*.json", "*.safetensors", "*.onnx", "*.md"]
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")


def hub_name(path: str | os.PathLike[str], *, revision: str | None = None) -> tuple[str, str | None] | None:
    """The name and revision that `path` has on the hub; None if it is a path.

    A name has the form OWNER/MODEL or OWNER/MODEL@REVISION. It is one on the hub if nothing here has that path and no folder
    here is called OWNER, so that a mistyped path is not sent over the network; `hf://OWNER/MODEL` always is. Nothing is
    asked of the hub.

    Raises:
        UserError: there is a revision of a folder, or two revisions.
    """
    given = re.sub("^hf:/(?!/)", PREFIX, as_path(path))  # as a Path writes it
    name, _, behind = given.removeprefix(PREFIX).partition("@")
    said = behind if _REVISION.fullmatch(behind) else None
    if not given.startswith(PREFIX):
        here = os.path.lexists(given)
        if here and revision is not None:
            raise UserError(f"{cut(given)} is a folder here, which has no revisions; give {PREFIX}{cut(given)}")
        is_name = _NAME.fullmatch(name) and (said or "@" not in given)
        if here or not is_name or (revision is None and os.path.isdir(name.partition("/")[0])):
            if revision is not None:
                raise UserError(f"{cut(given)} is no name of a model on the hub; give OWNER/MODEL")
            return None
    if "@" in given and said is None:
        raise UserError(f"{cut(given)} has no revision behind @; give a branch, tag or commit")
    if said is not None and revision not in (None, said):
        raise UserError(f"{cut(given)} and revision {cut(str(revision))} name two revisions; give one of them")
    return name, said or revision


def commit_of(folder: str | os.PathLike[str]) -> str | None:
    """The commit of a folder that `local_folder` has downloaded to; None for any other folder."""
    path = Path(folder)
    return path.name if path.parent.name == "snapshots" else None


def local_folder(
    path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> str:
    """`path` itself, or if it is a name on the hub (see `hub_name`), the folder of the cache that it was downloaded to.

    Args:
        revision: branch, tag or commit; by default the newest one of main.
        token: of the hub; by default that of `hf auth login`.
        cache_dir: by default that of huggingface_hub.
        force_download: also what the cache holds.
        local_files_only: only what the cache holds.

    Raises:
        UserError: the hub has no such model or revision, or cannot be reached; or there is a revision of a folder.
    """
    found = hub_name(path, revision=revision)
    if found is None:
        return as_path(path)
    name, revision = found
    token = _stripped(token)
    try:
        return snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else as_path(cache_dir),
            force_download=force_download,
            local_files_only=local_files_only,
            allow_patterns=FILES,
            library_name="ulmfit",
        )
    except RevisionNotFoundError:
        raise UserError(
            f"{name} on the hub has no revision {cut(str(revision))}; give a branch, tag or commit"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{cut(name)} is no folder here and no model on the hub that you may read; give a path, or log in by "
            "hf auth login"
        ) from None
    except HFValidationError:
        raise UserError(f"{cut(name)} is no name of a model on the hub; give OWNER/MODEL") from None
    except LocalEntryNotFoundError:
        why = "is not in the cache" if local_files_only or constants.HF_HUB_OFFLINE else "cannot be got from the hub"
        raise UserError(f"{cut(name)} is no folder here and {why}; give a path, or see to the connection") from None
    except (HfHubHTTPError, private_api.http_error(), OSError, ValueError) as error:  # the last one of a name of a file
        raise UserError(f"{cut(name)} cannot be got from the hub ({_reason(error)}); try again") from None


#: The file by which `from_pretrained` knows what a folder holds; an earlier one is looked for first.
_FORMS = {
    "bundle.json": "a bundle of classifiers",
    "model.onnx": "an exported classifier",
    "model.safetensors": "a model",
}
#: All files that a model may have on the hub; those of an earlier one there must not be left beside those of a new one.
_OWN_FILES = [f"{folder}{name}" for folder in ("", "*/") for name in (*_FORMS, "config.json", "tokenizer.json")]
_CARD_OPTIONS = {"license", "language", "tags", "model_name", "intended_use", "repo_id"}
_OF_A_RUN = ("status.json", "metrics.jsonl", "checkpoints")


class HubModel(ModelHubMixin, library_name="ulmfit", tags=["ulmfit"], paper_url="https://arxiv.org/abs/1801.06146"):
    """What can be saved, pushed to the hub and loaded from there. README.md in the folder is a card of the model.

    Subclasses have `_save_pretrained`, which writes the files, and `_card`.
    """

    loaded_from: Path | None = None  # the folder, beside which its run lies
    form: str = "model.safetensors"  # of the files in `_FORMS`, the one that a saved folder has

    @property
    def card_data(self) -> ModelCardData:
        """The metadata that all cards of this class have."""
        return self._hub_mixin_info.model_card_data

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # The mixin's own would keep the arguments as a configuration and write them to a config.json of its form.
        return object.__new__(cls)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> str | None:
        """Write the folder that `from_pretrained` loads, with a model card. A README.md that is there is kept.

        Args:
            model_card_kwargs: of the card: `license` (a hub identifier such as "mit"), `language` ("en"), `tags`,
                `model_name`, and `intended_use` (a text).
            config: nothing; the mixin gives it.
            push_to_hub: upload too, to `repo_id` (by default the folder's name) with the options of `push_to_hub`.

        Raises:
            UserError: the folder cannot be written, the card has no such option, or the hub refuses.
        """
        folder = as_path(save_directory)
        self._check(folder)
        _check_card(model_card_kwargs)
        try:
            # Not by the mixin's own, which first deletes a config.json: that of a model to which a tokenizer is added.
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._save_pretrained(Path(folder))
            if not os.path.lexists(card := os.path.join(folder, "README.md")):
                write_text(card, str(self.generate_model_card(**(model_card_kwargs or {}))))
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror or error}); name another folder") from None
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or Path(folder).name, model_card_kwargs=model_card_kwargs, **options)

    def _check(self, folder: str) -> None:
        """Refuse a folder in which the model would damage something, or would not be found."""
        if not folder:
            raise UserError("the folder to save in is an empty name; give a path")
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise UserError(f"{folder} is a file; name a folder")
        if any(os.path.lexists(os.path.join(folder, name)) for name in _OF_A_RUN):
            raise UserError(f"{folder} is a run, whose own files would be replaced; name another folder")
        there = [name for name in _FORMS if name != self.form and os.path.lexists(os.path.join(folder, name))]
        if there:
            raise UserError(f"{folder} holds {_FORMS[there[0]]}, and would be of two kinds; name another folder")
        task = getattr(self, "config", {}).get("task")
        other = _task_in(folder)
        if task is not None and other is not None and other != task:
            raise UserError(f"{folder} holds a {other.replace('_', ' ')}, which would be replaced; name another folder")

    def remove_other_forms(self, folder: Path) -> None:
        """Remove what a folder holds of a model of another form, which would be found in place of this one."""
        for name in _FORMS.keys() - {self.form}:
            (folder / name).unlink(missing_ok=True)

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any) -> str:
        """Upload to the hub in one commit; the repository is made if it is not there. Returns the commit's URL.

        Args:
            repo_id: OWNER/MODEL.
            model_card_kwargs: as of `save_pretrained`.
            options: private, token, branch, commit_message, create_pr and the others of huggingface_hub's mixin. What is
                left there of an earlier model is deleted, but with `delete_patterns` of your own.

        Raises:
            UserError: the hub refuses or cannot be reached, the repository holds something of another kind, or is public
                in spite of `private`.
        """
        _check_card(model_card_kwargs)
        options |= {"token": _stripped(options.get("token"))}
        try:
            self._check_there(repo_id, options)
            return super().push_to_hub(
                repo_id,
                model_card_kwargs={"repo_id": repo_id, **(model_card_kwargs or {})},
                **{"delete_patterns": _OWN_FILES} | options,
            )
        except HFValidationError as error:
            raise UserError(f"{cut(repo_id)} is no name for the hub ({_reason(error)}); give OWNER/MODEL") from None
        except HfHubHTTPError as error:  # its answer
            raise UserError(
                f"the hub does not take {cut(repo_id)} ({_reason(error)}); log in by hf auth login with a token that may "
                "write, or name another"
            ) from None
        except (private_api.http_error(), ConnectionError) as error:
            raise UserError(
                f"the hub cannot be reached ({_reason(error)}), so {cut(repo_id)} is not uploaded; see to the connection"
            ) from None

    def _check_there(self, repo_id: str, options: Mapping[str, Any]) -> None:
        """Refuse a repository in which the model would not be found, would replace one of another kind, or be public."""
        api, branch = HfApi(token=options["token"]), options.get("branch") or "main"
        if "/" not in repo_id:
            try:
                repo_id = f"{api.whoami()['name']}/{repo_id}"
            except (HfHubHTTPError, OSError):  # without a token nothing will be uploaded
                return
        try:
            info = api.model_info(repo_id, revision=branch)
        except (RepositoryNotFoundError, RevisionNotFoundError):  # which will be made
            return
        if options.get("private") and info.private is False:
            raise UserError(
                f"{cut(repo_id)} is public on the hub, and private=True does not change that; make it private in its settings, "
                "or name another"
            )
        names = {file.rfilename for file in info.siblings or ()}
        task = getattr(self, "config", {}).get("task")
        if task is None and names & _FORMS.keys():
            raise UserError(f"{cut(repo_id)} on the hub holds a model, whose tokenizer would be replaced; name another")
        for config in sorted(names & {"config.json", "1/config.json"}):
            other = _task_in(os.path.dirname(api.hf_hub_download(repo_id, config, revision=branch)))
            if task is not None and other is not None and other != task:
                raise UserError(
                    f"{cut(repo_id)} on the hub holds a {other.replace('_', ' ')}, which would be replaced; name another"
                )

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card: metadata and text. The keyword arguments are those of `save_pretrained`'s `model_card_kwargs`."""
        return ModelCard(self._card(**kwargs))

    def _card(self, **kwargs: Any) -> str:
        raise NotImplementedError


def _check_card(given: dict[str, Any] | None) -> None:
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"model_card_kwargs is of type {type(given).__name__}; give a dict")
    if unknown := sorted(map(str, (given or {}).keys() - _CARD_OPTIONS)):
        there = ", ".join(sorted(_CARD_OPTIONS - {"repo_id"}))
        raise UserError(f"the model card has no option {cut(unknown[0])}; give some of {there}")


def _task_in(folder: str) -> str | None:
    """The task of a model in a folder; None if there is none."""
    with suppress(OSError, ValueError):
        stored = parse_json(Path(folder, "config.json").read_text(encoding="utf-8"))
        task = stored.get("task") if isinstance(stored, dict) else None
        return task if isinstance(task, str) else None
    return None


def _stripped(token: str | bool | None) -> str | bool | None:
    """A token of the hub without white space around it, as a file has it.

    Raises:
        UserError: it can be none. The message does not show it.
    """
    if not isinstance(token, str):
        return token
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UserError(
            "the token is empty or has signs that no token of the hub has; give one of the hub's settings page"
        )
    return token


def _reason(error: Exception) -> str:
    lines = re.sub(r"Bearer \S+", "Bearer ***", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:120].rstrip(" .")
