"""export: a model as a folder of its own, also with a quarter of the bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import UseAppendAction

from ulmfit.cli.common import check_output
from ulmfit.errors import UserError
from ulmfit.files import new_folder

if TYPE_CHECKING:
    from ulmfit.tokenizer.tokenizer import Tokenizer


@dataclass(kw_only=True)
class ExportOptions:
    """Write a model as a folder, for this package, ONNX Runtime, transformers or fastai.

    Several classifiers become a bundle, or one ONNX graph, whose probabilities are the mean of theirs.
    """

    model: UseAppendAction[list[str]]
    """Run directory, its model/, or OWNER/MODEL on the hub. Given several times, classifiers to average, such as forward and backward."""
    output: str
    """Folder to write, which must not exist."""
    bits: Literal[8, 32] = 32
    """Bits of a weight: 8 stores matrices with a scale a row, a quarter of the size."""
    to: Literal["ulmfit", "onnx", "transformers", "fastai"] = "ulmfit"
    """Format: onnx is a classifier for ONNX Runtime, without torch, which examples/predict_onnx.py uses; transformers one
    for AutoModel and pipeline, with trust_remote_code; fastai the .pth and itos.pkl that fastai 2.8 loads."""
    int8: bool = False
    """With --to onnx, matrix products in 8 bits: faster, probabilities move by some 0.004."""


def export(options: ExportOptions) -> None:
    """Write the folder and print its size."""
    output = Path(options.output)
    check_output(output)
    if options.to != "ulmfit" and options.bits == 8:
        cure = "give --int8 for 8 bits in ONNX" if options.to == "onnx" else "leave it out"
        raise UserError(f"--bits 8 is for --to ulmfit; {cure}")
    if options.to != "onnx" and options.int8:
        cure = "give --bits 8 for weights in 8 bits" if options.to == "ulmfit" else "leave it out"
        raise UserError(f"--int8 is for --to onnx; {cure}")
    from ulmfit.bundle import each_model, members_of, save_bundle
    from ulmfit.hub import local_folder
    from ulmfit.model.ngrams import NGramNet
    from ulmfit.model.pretrained import load_model, save_model
    from ulmfit.model_kinds import is_ngrams

    options = replace(options, model=[local_folder(model) for model in options.model])
    if len(options.model) > 1 or members_of(options.model[0]):
        found = each_model(options.model)
        if options.to not in ("ulmfit", "onnx"):
            raise UserError(
                f"--to {options.to} exports one model, and these are {len(found)}; give one of them, such as {found[0]}"
            )
        with new_folder(output) as aside:
            if options.to == "onnx":
                _write_mean(options, aside)
            else:
                save_bundle(aside, options.model, bits=options.bits)
        what = f"the mean of {len(found)} classifiers" if options.to == "onnx" else "a bundle"
        print(f"{output}: {what} in {_mebibytes(output)}")
        return
    net, tokenizer, config = load_model(options.model[0])
    if is_ngrams(config) and options.to in ("fastai", "transformers"):
        raise UserError(
            f"--to {options.to} is for networks and {options.model[0]} is a linear classifier of n-grams; leave it out"
        )
    with new_folder(output) as aside:
        if options.to == "fastai":
            from ulmfit.model.fastai_export import write_fastai

            assert not isinstance(net, NGramNet), "n-grams were refused"
            write_fastai(aside, net, tokenizer, config, name=output.name)
        elif options.to == "ulmfit":
            save_model(aside, net, tokenizer, config, bits=options.bits)
        else:
            _write_classifier(options, aside, net, tokenizer, config)
    print(f"{output}: {sum(p.numel() for p in net.parameters()):,} parameters in {_mebibytes(output)}")


def _mebibytes(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 2**20:.1f} MiB"


def _write_classifier(options: ExportOptions, output: Path, net: Any, tokenizer: Tokenizer, config: dict) -> None:
    from ulmfit.model.classifier import ClassifierNet
    from ulmfit.model.ngrams import NGramNet

    if not isinstance(net, ClassifierNet | NGramNet):
        raise UserError(
            f"--to {options.to} is for classifiers and {options.model[0]} is a language model; leave it out"
        )
    if options.to == "transformers":
        assert isinstance(net, ClassifierNet), "n-grams were refused"
        from ulmfit.model.pretrained import find_model
        from ulmfit.model.transformers_export import write_transformers

        write_transformers(output, net, tokenizer, config, source=find_model(options.model[0]))
        return
    from ulmfit.exported.folder import write_export
    from ulmfit.model_folder import graph_of

    bits: Literal[8, 32] = 8 if options.int8 else 32
    write_export(output, graph_of(net, config, bits), tokenizer, config, bits=bits)


def _write_mean(options: ExportOptions, output: Path) -> None:
    from ulmfit.bundle import each_model, load_bundle
    from ulmfit.exported.folder import write_export
    from ulmfit.exported.mean import build_mean
    from ulmfit.model_folder import graph_of

    bundle = load_bundle(options.model, device="cpu", backend="torch")
    first = bundle.tokenizer.to_str()
    for path, member in zip(each_model(options.model), bundle.members, strict=True):
        if member.tokenizer.to_str() != first:
            raise UserError(
                f"{path} has another vocabulary than the first of these classifiers, and an ONNX graph takes one; export "
                "each and give all to predict --model"
            )
    bits: Literal[8, 32] = 8 if options.int8 else 32
    graphs = []
    for member in bundle.members:
        assert member.net is not None, "loaded for torch"
        graphs.append(graph_of(member.net, member.config, bits))
    several = bundle.thresholds is not None
    model = build_mean(graphs, bundle.places, bundle.shares, multi_label=several, temperature=bundle.temperature)
    config = dict(bundle.config)
    if bundle.thresholds is not None:
        config["thresholds"] = bundle.thresholds.tolist()
    write_export(output, model, bundle.tokenizer, config, bits=bits)
