"""Cards of BEATs encoders that do not know scenes: pre-trained ones, tokenizers, and those fine-tuned on AudioSet."""

import shlex
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from dataset_script.errors import InputError
from dataset_script.markdown import code, code_block, markdown_table, plain
from model_cards.complexity import measure_folder, read_config
from model_cards.corpora import SYNTHETIC
from model_cards.hyperparameters import hyperparameter_table
from model_cards.inputs import input_table
from model_cards.links import TEMPLATES, citations, commit_link, hub_id, reference_link
from model_cards.results import RESULTS_FILE, RunResults, portable


FINE_TUNING = "train/finetune_teacher.py --recipe ssl --model_name_or_path"

KINDS = {
    "BeatsForPreTraining": (
        "pre-trained by masked audio modelling, without labels",
        "feature-extraction",
        FINE_TUNING,
    ),
    "BeatsForTokenizerTraining": (
        "trained as a tokenizer, which gives the labels of masked audio modelling",
        None,
        "train/pretrain_teacher.py --recipe pretrain_iter2 --dataset AUDIO --tokenizer_name_or_path",
    ),
    "BeatsForAudioClassification": (
        "fine-tuned on clips with any number of labels each",
        "audio-classification",
        FINE_TUNING,
    ),
}
"""By architecture: what the network is, its task on the Hub, and the command that continues from it."""


def make_encoder_card(
    model_dir: str | Path,
    results: RunResults,
    repo_id: str | None = None,
    dataset_name: str | None = None,
    dataset_license: str | None = None,
) -> ModelCard:
    """Return the card of an encoder, from its results alone.

    Args:
        model_dir (`str` or `Path`): Output folder of a finished run.
        results (`RunResults`): Its results.
        repo_id (`str`, *optional*): Where the model will be on the Hub; defaults to the path of the folder.
        dataset_name (`str`, *optional*): Name of the audio; the run only knows its folder.
        dataset_license (`str`, *optional*): Its licence.

    Raises:
        FileNotFoundError: If the folder is incomplete.
        InputError: If it contains another kind of model, or synthetic clips could be mistaken for other audio.
    """
    model_dir = Path(model_dir)
    config, arguments = read_config(model_dir), results.arguments
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in KINDS:
        raise InputError(f"{model_dir} contains a {architecture}: use the folder of a model that train/ has made.")
    description, task, next_step = KINDS[architecture]
    synthetic = str(arguments["dataset"]).startswith("demo")
    if synthetic and dataset_name is not None:
        raise InputError(f"The audio is synthetic: it cannot be published as {dataset_name!r}.")
    metrics = {**results.content.get("figures", {}), **results.content.get("metrics", {})}
    rows = [[name, f"{value:.4g}"] for name, value in metrics.items() if isinstance(value, int | float)]
    start = arguments.get("model_name_or_path")
    base, data = hub_id(start, model_dir), hub_id(str(arguments["dataset"]).partition(":")[0], model_dir)
    name = (repo_id or model_dir.resolve().name).split("/")[-1]
    card_data = ModelCardData(
        license="apache-2.0" if synthetic else dataset_license or "other",
        license_name=None if synthetic or dataset_license else "that-of-the-audio",
        library_name="transformers",
        pipeline_tag=task,
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=[data] if data else None,
        tags=["beats", "self-supervised-learning", *(["synthetic-data"] if synthetic else [])],
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATES / "encoder.md"),
        name=name,
        model_id=shlex.quote(repo_id or portable(str(model_dir))),
        plain=plain,
        code=code,
        code_block=code_block,
        description=description,
        next_step=next_step,
        synthetic=synthetic,
        dataset=dataset_name or arguments["dataset"],
        dataset_license=SYNTHETIC.license if synthetic else dataset_license,
        start=reference_link(start, model_dir) if start else None,
        commit_link=commit_link,
        inputs=input_table(model_dir),
        parameters=measure_folder(model_dir).parameters,
        metrics=markdown_table(["at the end of the run", "value"], rows),
        results=results,
        hyperparameters=hyperparameter_table(arguments),
        citations=citations("cai2024data", "chen2023beats"),
        results_file=RESULTS_FILE,
    )
