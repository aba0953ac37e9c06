"""The two editions of a submission, from the arguments of the command to its files."""

import logging

from dataset_script import load_scenes
from train.deployment import edition_2024, edition_2025
from train.deployment.arguments import SubmissionArguments
from train.deployment.challenge import check_finished, read_about, write_template


logger = logging.getLogger(__name__)


def submit_2024(args: SubmissionArguments) -> None:
    """Write a submission to the 2024 edition; arguments and errors as for `train/submission.py`."""
    models = edition_2024.read_models(args.models)
    content = edition_2024.metadata(args.label, models, read_about(args.about))
    if args.write_about is not None:
        finish_template(args.write_about, content)
        return
    edition_2024.check_subsets(models)
    check_finished(content)
    clips = load_scenes("evaluation", args.data_dir, cache_dir=args.cache_dir)["test"]
    edition_2024.write_submission(
        args.output_dir, args.label, models, content, clips, args.cache_dir, args.batch_size, args.trust_remote_code
    )


def submit_2025(args: SubmissionArguments) -> None:
    """Write a submission to the 2025 edition; arguments and errors as for `train/submission.py`."""
    model, device_models = edition_2025.read_system(args.models, args.device_models)
    about = read_about(args.about)
    content = edition_2025.metadata(args.label, model, device_models, None, about)
    if args.write_about is not None:
        finish_template(args.write_about, content)
        return
    check_finished(content)
    scenes = load_scenes(model.results.dataset, args.data_dir, cache_dir=args.cache_dir)
    if device_models:
        metrics = edition_2025.evaluate_system(
            model.folder, device_models, scenes, args.cache_dir, args.batch_size, args.trust_remote_code
        )
        content = edition_2025.metadata(args.label, model, device_models, metrics, about)
    edition_2025.write_package(args.output_dir, args.label, model, device_models, content, scenes["test"])


def finish_template(path: str, content: dict[str, object]) -> None:
    """Write the file for `--write_about`, and say what to do with it."""
    write_template(path, content)
    logger.info("Wrote %s: replace each TODO in it, and pass it to --about.", path)
