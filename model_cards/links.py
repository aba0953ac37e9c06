"""What a card refers to: the code, publications, and the models and data sets on the Hub that a model is made from."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from dataset_script.errors import InputError
from dataset_script.markdown import code
from model_cards.results import RunResults


TEMPLATES = Path(__file__).with_name("templates")

DISTRIBUTION = "acoustic-scenes"

OWN_FOLDERS = ("outputs", "checkpoints")
"""Folders of the project's examples, whose paths look like ids on the Hub."""


def code_url() -> str | None:
    """Return the URL of the code: `Repository` of `[project.urls]` in pyproject.toml, or None if it is not there."""
    try:
        urls = metadata(DISTRIBUTION).get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    for entry in urls:
        name, _, url = entry.partition(",")
        if name.strip().lower() == "repository":
            return str(url).strip().rstrip("/")
    return None


def commit_link(commit: str | None) -> str:
    """Return a commit of the code in Markdown, as a link if the URL of the code is known."""
    url = code_url()
    if url is None or not re.fullmatch("[0-9a-f]{40}", commit or ""):  # "-dirty" if files had changed
        return code(commit or "unknown")
    return f"[{code(str(commit))}]({url}/commit/{commit})"


def hub_id(reference: object, model_dir: str | Path) -> str | None:
    """Return what a run has recorded of a model or data set if it is an id on the Hub, or None if it is a path.

    Args:
        reference (`object`): What was recorded, such as `"user/name"`.
        model_dir (`str` or `Path`): The model, whose neighbours are local.
    """
    if not isinstance(reference, str) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", reference):
        return None
    owner = reference.split("/")[0]
    local = {*OWN_FOLDERS, *(parent.name for parent in Path(model_dir).resolve().parents)}
    return None if owner in local or Path(owner).exists() else reference


def reference_link(reference: str, model_dir: str | Path, kind: str = "") -> str:
    """Return a recorded model or data set in Markdown, as a link if it is on the Hub.

    Args:
        reference (`str`): What was recorded.
        model_dir (`str` or `Path`): As for [`hub_id`].
        kind (`str`, *optional*, defaults to `""`): `"datasets/"` for a data set.
    """
    repo_id = hub_id(reference, model_dir)
    return code(reference) if repo_id is None else f"[{code(reference)}](https://huggingface.co/{kind}{repo_id})"


def base_model_metadata(
    model_dir: str | Path, own: RunResults, training: RunResults, student: bool, stated: str | None
) -> dict[str, Any]:
    """Return the metadata that link a model to the one it was made from, empty if that is not on the Hub.

    The Hub has a relation for quantized and for fine-tuned models, but none for distilled ones: a student's weights
    are not those of its teachers.

    Args:
        model_dir (`str` or `Path`): The model.
        own (`RunResults`): Its results.
        training (`RunResults`): The results that tell how it was trained.
        student (`bool`): Whether it is a student.
        stated (`str` or `None`): Id of the base model, for one that was a folder when it was used.

    Raises:
        InputError: If a base model is stated for a student, which was trained from random weights.
    """
    if own.converted_format:
        relation, recorded = "quantized", own.float_model
    elif student:
        if stated is not None:
            raise InputError(
                f"{model_dir} is a student in float, trained from random weights: leave out --base_model, for "
                "INT8 models and teachers."
            )
        return {}
    else:
        relation, recorded = "finetune", training.arguments.get("model_name_or_path")
    repo_id = stated or hub_id(recorded, model_dir)
    return {} if repo_id is None else {"base_model": repo_id, "base_model_relation": relation}


def citations(*keys: str) -> str:
    """Return entries of `citations.bib` by their keys."""
    entries = re.split(r"\n(?=@)", (TEMPLATES / "citations.bib").read_text(encoding="utf-8").strip())
    return "\n".join(entry for key in keys for entry in entries if f"{{{key}," in entry)


def data_ids(results: RunResults, model_dir: str | Path) -> list[str]:
    """Return the ids of the data sets on the Hub that a model was trained on, those of unlabelled sound included."""
    sources = [results.dataset.partition(":")[0], *(results.unlabelled or {}).get("sources", [])]
    return [repo_id for source in sources if (repo_id := hub_id(source, model_dir))]
