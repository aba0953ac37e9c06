"""Tables of results, in Markdown."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dataset_script.markdown import code, markdown_table, plain
from dataset_script.splits import subset_percentage
from model_cards.complexity import SUBMITTED_FORMATS, ModelComplexity
from model_cards.corpora import Corpus
from model_cards.published import PUBLISHED_ROWS, published, published_row
from model_cards.results import RunResults
from modeling_tfsepnet.complexity import MAX_MACS, MAX_PARAMETER_BYTES


Subsets = Mapping[str, Sequence[RunResults]]
"""The runs on each configuration of the data."""

GROUPS = {"device_groups": "{} devices", "device_wise": "device {}", "class_wise": "class {}", "city_wise": "city {}"}
"""Groups of clips whose accuracy a table of one run has, and what it calls them."""

VALUE_BYTES = {"INT8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""Bytes of an activation, by the number format of a network."""


def clip_groups(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what a table of one run calls each group of clips, the entry of the metrics and the group's name there.

    Where all clips are of one device or city, which is that of recordings whose device is unknown, it is left out.

    Args:
        metrics (`Mapping`): Metrics of a scene classifier.
    """
    for group, title in GROUPS.items():
        names = metrics.get(group, {})
        if len(names) > 1:
            yield from ((title.format(plain(name)), group, name) for name in names)


def results_table(results: Mapping[str, Any]) -> str:
    """Return the main results of an evaluated model as a Markdown table.

    Args:
        results (`Mapping`): The content of `results.json` of a scene classifier.
    """
    metrics = results["metrics"]
    rows = [["clips", f"{metrics['clips']:,}" + (", synthetic" if results["synthetic"] else "")]]
    if "selection" in results:
        rows.append(["selected", results["selection"]])
    rows += [
        ["macro accuracy", accuracy_text(metrics, "macro_accuracy")],
        ["accuracy", accuracy_text(metrics, "accuracy")],
        ["log loss", f"{metrics['log_loss']:.3f}"],
    ]
    for title, group, name in clip_groups(metrics):
        scores = metrics[group][name]
        rows.append([title, accuracy_text(scores) if scores else "no clips"])
    for teacher in results.get("teacher_quality", []):
        known = teacher["macro_accuracy"] is not None
        tested = f"{accuracy_text(teacher, 'macro_accuracy')} macro accuracy; " if known else ""
        taught = f"{percent(teacher['training_accuracy'])} % of the clips it teaches"
        rows.append([f"teacher {plain(teacher['name'])}", tested + taught])
    rows += [[name.replace("_", " "), f"{count:,}"] for name, count in results["complexity"].items()]
    table = markdown_table(["", "result"], rows) + "\n"
    return f"{table}\n{device_models_table(results)}" if results.get("device_models") else table


def comparison_rows(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the names and the metrics of a student that was compared: its teachers, labels alone, and distilled.

    Args:
        results (`Mapping`): The content of `results.json` of a student with `labels_alone`.
    """
    teachers = [item for item in results["teacher_quality"] if item["macro_accuracy"] is not None]
    return [
        *((f"teacher {item['name']}", item) for item in teachers),
        ("student, labels alone", results["labels_alone"]),
        ("student, distilled", results["metrics"]),
    ]


def comparison_table(results: Mapping[str, Any]) -> str:
    """Return the macro accuracies of a student's teachers, of a student of labels alone, and its own, in Markdown.

    Args:
        results (`Mapping`): As for [`comparison_rows`].
    """
    rows = [[plain(name), accuracy_text(scores, "macro_accuracy")] for name, scores in comparison_rows(results)]
    gain = results["labels_alone"]["difference"]
    low, high = (f"{100 * bound:+.1f}" for bound in gain["confidence_interval"])
    rows.append(["difference of the students", f"{100 * gain['difference']:+.1f} points ({low} to {high})"])
    clips = f"{results['training_clips']:,} labelled clips"
    return markdown_table([clips, "macro accuracy (95 % interval over locations)"], rows) + "\n"


def quantization_table(results: Mapping[str, Any]) -> str:
    """Return the main results of a quantization, float beside INT8, as a Markdown table.

    Args:
        results (`Mapping`): The content of `results.json` of train/quantize.py.
    """
    rows = _compared_accuracies(results["float"], results["int8"])
    latency, size = results["latency_ms"], results["complexity"]
    rows += [
        ["one clip, one thread (torch)", f"{latency['float']:.1f} ms", f"{latency['int8']:.1f} ms"],
        ["parameters", "", f"{size['parameters']:,} in {size['parameter_bytes']:,} bytes"],
        ["scales and zero points", "", f"{size['scale_bytes']:,} bytes"],
        ["multiply-accumulates", "", f"{size['macs']:,}"],
        ["equal decisions", "", f"{100 * results['agreement']:.1f} %"],
        ["SQNR of the logits", "", f"{results['sqnr_db']:.1f} dB"],
    ]
    return markdown_table(["", "float", "INT8"], rows) + "\n"


def half_precision_table(results: Mapping[str, Any]) -> str:
    """Return the main results of a float16 model beside those of the float32 model, as a Markdown table.

    Args:
        results (`Mapping`): The content of `results.json` of train/half_precision.py.
    """
    size = results["complexity"]
    rows = _compared_accuracies(results["float"], results["float16"])
    rows += [
        ["bytes of parameters", f"{4 * size['parameters']:,}", f"{size['parameter_bytes']:,}"],
        ["equal decisions", "", f"{100 * results['agreement']:.1f} %"],
        ["largest difference of a logit", "", f"{results['largest_difference']:.3f}"],
    ]
    return markdown_table(["", "float32", "float16"], rows) + "\n"


def _compared_accuracies(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[list[str]]:
    """Return rows with the accuracies of a float model and of its converted form, overall and by group of clips."""
    rows = [
        [name.replace("_", " "), accuracy_text(before, name), accuracy_text(after, name)]
        for name in ("macro_accuracy", "accuracy")
    ]
    for title, group, name in clip_groups(before):
        if before[group][name]:
            rows.append([title, accuracy_text(before[group][name]), accuracy_text(after[group][name])])
    return rows


def confusion_table(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Return the numbers of clips by true class (row) and predicted class (column) as a Markdown table.

    Args:
        confusion (array of shape `(classes, classes)`): Numbers of clips.
        labels (`Sequence[str]`): Names of the classes.
    """
    names = [plain(label) for label in labels]
    rows = [[name, *map(str, counts)] for name, counts in zip(names, confusion, strict=True)]
    return markdown_table(["true / predicted", *names], rows) + "\n"


def summary_table(subsets: Subsets, recipe: str | None, corpus: Corpus, number_format: str) -> str:
    """Return the table of a card with a row for each training subset.

    The published accuracies are only added to results on TAU, and only if they are of the same number format.

    Args:
        subsets (`Subsets`): The runs.
        recipe (`str` or `None`): Their recipe.
        corpus (`Corpus`): What they are on.
        number_format (`str`): Of the models.
    """
    reference, source = None, ""
    if corpus.kind == "tau" and recipe in PUBLISHED_ROWS:
        table = published()[PUBLISHED_ROWS[recipe][0]]
        if table["number_format"] == number_format:
            reference, source = published_row(recipe), table["source"].rsplit(", ", 1)[1]
    header = ["training clips", "macro accuracy, %", "95 % interval", "accuracy, %", "log loss", "runs"]
    rows = []
    for subset, runs in subsets.items():
        interval = mean_interval(runs)
        macro = percent(mean_metric(runs))
        if len(runs) > 1:
            macro += f" ± {percent(statistics.stdev(run.metrics['macro_accuracy'] for run in runs))}"
        row = [
            f"{subset_percentage(subset)} % ({code(subset)})",
            macro,
            f"{percent(interval[0])} to {percent(interval[1])}" if interval else "",
            percent(mean_metric(runs, "accuracy")),
            f"{mean_metric(runs, 'log_loss'):.3f}",
            str(len(runs)),
        ]
        rows.append([*row, f"{reference[subset_percentage(subset)]:.1f}"] if reference else row)
    if reference:
        header.append(f"published ({source}), %")
    return markdown_table(header, rows)


def group_table(subsets: Subsets, grouping: str) -> str:
    """Return the accuracies by class or device, with a column for each training subset.

    Args:
        subsets (`Subsets`): The runs.
        grouping (`str`): `"class_wise"` or `"device_wise"`.
    """
    unseen = {device for runs in subsets.values() for run in runs for device in run.unseen_devices}
    names = dict.fromkeys(name for runs in subsets.values() for run in runs for name in run.metrics[grouping])
    rows = []
    for name in names:
        row = [plain(name) + (" (not in training)" if grouping == "device_wise" and name in unseen else "")]
        for runs in subsets.values():
            scores = [run.metrics[grouping].get(name) for run in runs]
            row.append("no clips" if None in scores else percent(statistics.fmean(s["accuracy"] for s in scores)))
        rows.append(row)
    title = {"class_wise": "class", "device_wise": "device"}[grouping]
    columns = (f"{subset_percentage(subset)} %" for subset in subsets)
    return markdown_table([f"{title}, accuracy in %", *columns], rows)


def device_models_table(results: Mapping[str, Any]) -> str:
    """Return the accuracies of the general model beside those with the models of devices, as a Markdown table.

    Args:
        results (`Mapping`): The content of `results.json` of train/adapt_devices.py.
    """
    general, adapted = results["metrics"], results["metrics_with_device_models"]
    rows = [
        [name.replace("_", " "), "", accuracy_text(general, name), accuracy_text(adapted, name)]
        for name in ("macro_accuracy", "accuracy")
    ]
    rows.append(["log loss", "", f"{general['log_loss']:.3f}", f"{adapted['log_loss']:.3f}"])
    for group, scores in general["device_groups"].items():
        rows.append([f"{group} devices", "", accuracy_text(scores), accuracy_text(adapted["device_groups"][group])])
    for device, scores in general["device_wise"].items():
        clips = results["device_models"].get(device)
        own = "general model" if clips is None else accuracy_text(adapted["device_wise"][device])
        rows.append([f"device {plain(device)}", "" if clips is None else f"{clips:,}", accuracy_text(scores), own])
    return markdown_table(["", "training clips", "general model", "with device models"], rows) + "\n"


def complexity_table(
    complexity: ModelComplexity,
    own: RunResults,
    counterpart: RunResults | None,
    file_bytes: Sequence[int | None],
    onnx_bytes: int | None = None,
    activations: int | None = None,
) -> str:
    """Return size and cost beside accuracy, as stored and in the other number format, with the challenge's limits.

    Args:
        complexity (`ModelComplexity`): Of the model.
        own (`RunResults`): Of the model.
        counterpart (`RunResults` or `None`): Of the same network in the other number format.
        file_bytes (`Sequence[int | None]`): Size of the files with the weights, of the model and of its counterpart.
        onnx_bytes (`int`, *optional*): Size of its ONNX file.
        activations (`int`, *optional*): Values of [`~model_cards.complexity.peak_activations`].
    """
    quantized = complexity.number_format == "INT8"
    converted = complexity.number_format in SUBMITTED_FORMATS
    other_format = "float32" if converted else (counterpart and counterpart.converted_format) or "INT8"
    formats = (complexity.number_format, other_format)
    counted = counterpart.complexity if counterpart else {}
    other_bytes = complexity.parameters * 4 if converted else counted.get("parameter_bytes", complexity.parameters)
    macs = complexity.macs
    byte_limit = None if macs is None else MAX_PARAMETER_BYTES
    rows = [
        ["parameters", *[f"{complexity.parameters:,}"] * 2, ""],
        [
            "bytes of parameters" + (", as the challenge counts" if byte_limit else ""),
            _with_limit(complexity.parameter_bytes, byte_limit),
            _with_limit(other_bytes, byte_limit),
            f"{byte_limit:,}" if byte_limit else "",
        ],
        ["bytes of the file", *(f"{size:,}" if size else "" for size in file_bytes), ""],
    ]
    if onnx_bytes is not None:
        rows.append(["bytes of `model.onnx`", f"{onnx_bytes:,}", "", ""])
    if macs is not None:
        rows.append(["MACs for one second", *[_with_limit(macs, MAX_MACS)] * 2, f"{MAX_MACS:,}"])
    if activations is not None:
        widths = VALUE_BYTES | {"INT8": activation_bits(own, counterpart) // 8}
        rows.append(["peak activation memory, bytes", *(f"{activations * widths[name]:,}" for name in formats), ""])
    latency = latency_results(own, counterpart).get("latency_ms")
    if latency and "float16" not in formats:
        times = [f"{latency['int8' if name == 'INT8' else 'float']:.1f}" for name in formats]
        rows.append(["milliseconds for one second", *times, ""])
    if quantized:
        script = f"{complexity.official_bytes:,} bytes, {complexity.official_macs:,} MACs"
        rows += [["the challenge's script prints", script, "", ""]]
    accuracy = percent(mean_metric([counterpart])) if counterpart else "not measured"
    rows.append(["macro accuracy, %", percent(mean_metric([own])), accuracy, ""])
    header = ["", f"{formats[0]} (this model)", formats[1], "limit"]
    if macs is None and counterpart is None:
        header, rows = header[:2], [row[:2] for row in rows]
    return markdown_table(header, rows)


def activation_bits(own: RunResults, counterpart: RunResults | None) -> int:
    """Return the bits of the activations of a network in INT8; 8 if neither of its results has them."""
    contents = [run.content for run in (own, counterpart) if run is not None]
    return next((content["activation_bits"] for content in contents if "activation_bits" in content), 8)


def latency_results(own: RunResults, counterpart: RunResults | None) -> dict[str, Any]:
    """Return the content of the results that have a measured latency, of either format; empty if none has."""
    contents = [run.content for run in (own, counterpart) if run is not None]
    return next((content for content in contents if "latency_ms" in content), {})


def int8_table(results: RunResults, complexity: ModelComplexity, stored: Mapping[str, int]) -> str:
    """Return what quantization did to a network: what is stored, and how far the outputs are from those in float.

    Args:
        results (`RunResults`): Of train/quantize.py.
        complexity (`ModelComplexity`): Of the INT8 model.
        stored (`Mapping[str, int]`): As of [`~model_cards.complexity.stored_integers`].
    """
    content = results.content
    rows = [
        ["weights, one byte each", f"{stored['weight']:,}"],
        ["biases, two bytes each", f"{stored['bias']:,}"],
        ["bytes of scales, zero points and smoothing factors", f"{complexity.scale_bytes:,}"],
    ]
    if "activation_bits" in content:
        rows.append(["bits of the activations", str(content["activation_bits"])])
    if "calibration_clips" in content:
        rows.append(["calibration clips", f"{content['calibration_clips']:,}"])
    if content.get("qat_epochs"):
        rows.append(["epochs of quantization-aware fine-tuning", str(content["qat_epochs"])])
    if "sqnr_db" in content:
        rows.append(["SQNR of the logits, dB", f"{content['sqnr_db']:.1f}"])
    if "agreement" in content:
        rows.append(["test clips with the same decision as in float, %", percent(content["agreement"])])
    if decibels := content.get("layer_sqnr_db"):
        worst = min(decibels, key=lambda name: decibels[name])
        rows.append([f"SQNR with only {code(worst)} in INT8, the lowest, dB", f"{decibels[worst]:.1f}"])
    return markdown_table(["quantization", "value"], rows)


def mean_metric(runs: Sequence[RunResults], name: str = "macro_accuracy") -> float:
    """Return the mean of a metric over runs."""
    return statistics.fmean(run.metrics[name] for run in runs)


def mean_interval(runs: Sequence[RunResults], name: str = "macro_accuracy") -> tuple[float, float] | None:
    """Return the mean 95 % interval of an accuracy over runs, or None if a run has none.

    It tells how much the choice of the test recordings matters, which is the same for all runs; so it does not become
    narrower with their number.
    """
    intervals = [run.metrics.get("confidence_intervals", {}).get(name) for run in runs]
    if None in intervals:
        return None
    low, high = zip(*intervals, strict=True)
    return statistics.fmean(low), statistics.fmean(high)


def accuracy_text(scores: Mapping[str, Any], name: str = "accuracy") -> str:
    """Return an accuracy in percent, with its confidence interval if there is one."""
    text = f"{percent(scores[name])} %"
    if name in scores.get("confidence_intervals", {}):
        low, high = scores["confidence_intervals"][name]
        text += f" ({percent(low)} to {percent(high)})"
    return text


def percent(fraction: float) -> str:
    """Return a fraction in percent, with one decimal."""
    return f"{100 * fraction:.1f}"


def _with_limit(count: int, limit: int | None) -> str:
    """Return a number, marked if it exceeds its limit."""
    return f"{count:,} (**over the limit**)" if limit is not None and count > limit else f"{count:,}"
