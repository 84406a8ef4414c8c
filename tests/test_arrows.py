"""Which room imports which: arrows point one way, and each room does without what is not its business."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import ulmfit

ROOT = Path(ulmfit.__file__).parent
# Files at the top that any room may import, and that import no room.
GROUND = {
    "cache_folder",
    "config",
    "config_check",
    "console",
    "cores",
    "device",
    "errors",
    "estimator_inputs",
    "excerpts",
    "files",
    "fit_config",
    "forks",
    "hub",
    "identity",
    "limits",
    "markdown",
    "model_card",
    "model_kinds",
    "model_origin",
    "option_types",
    "paths",
    "private_api",
    "processes",
    "reports",
    "resumable",
    "run_command",
    "run_scores",
    "shipped",
    "sweep_config",
    "texts",
    "turns",
}
# Files at the top that are one room: what uses a trained model.
INFERENCE = {
    "bundle",
    "coloured",
    "explanation",
    "generation",
    "inference",
    "model_folder",
    "parallel_inference",
    "prediction",
}
# From the ground up; a room imports what its line names, and the ground.
ROOMS = {
    "tokenizer": set(),
    "data": set(),
    "batches": set(),
    "model": {"tokenizer"},
    "distributed": set(),
    "run": {"distributed"},
    "exported": {"tokenizer"},
    "inference": {"tokenizer", "data", "batches", "model", "exported"},  # the files of room_of
    "training": {"tokenizer", "data", "batches", "model", "distributed", "run", "inference"},
    "estimator": {"training", "inference"},
    "learner": {"training", "inference"},
    "report": {"data", "batches", "distributed", "run", "inference", "training"},
    "cli": {
        "tokenizer",
        "data",
        "batches",
        "model",
        "distributed",
        "run",
        "exported",
        "inference",
        "training",
        "report",
    },
}
# What a room must not know of besides: text is no tensors, a model no files of data and no ranks, a batch no model.
FOREIGN = {
    "ground": {"accelerate", "datasets", "deepspeed", "tokenizers", "torch.distributed"},
    "tokenizer": {"torch", "accelerate", "datasets", "deepspeed"},
    "data": {"torch", "accelerate", "deepspeed", "tokenizers"},
    "batches": {"accelerate", "datasets", "deepspeed", "tokenizers", "torch.nn", "torch.distributed"},
    "model": {"accelerate", "datasets", "deepspeed", "tokenizers", "torch.distributed"},
    "run": {"accelerate", "datasets", "deepspeed", "torch.distributed"},
    "exported": {"torch", "accelerate", "datasets", "deepspeed"},
}


def room_of(parts):
    """The room of a module, by its path below ulmfit/; "ground", or None for __init__ and __main__."""
    if parts[0] in ROOMS and parts[0] != "inference":
        return parts[0]
    if parts[0] in INFERENCE:
        return "inference"
    return "ground" if parts[0] in GROUND else None


def imports(file):
    """The modules that a file imports, anywhere in it: "ulmfit.files", "torch.distributed", ..."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: a relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
    return found


def files():
    return [(file, file.relative_to(ROOT).with_suffix("").parts) for file in sorted(ROOT.rglob("*.py"))]


def test_every_file_has_a_room():
    for file, parts in files():
        assert room_of(parts) or parts[0] in ("__init__", "__main__"), f"{file} stands in no room of this test"


def test_arrows_point_one_way():
    order = ["ground", *ROOMS]
    assert all(order.index(below) < order.index(room) for room, reached in ROOMS.items() for below in reached)
    wrong = []
    for _, parts in files():
        room = room_of(parts)
        if room is None:
            continue
        for module in imports(ROOT.joinpath(*parts).with_suffix(".py")):
            names = module.split(".")
            if names[0] != "ulmfit" or len(names) == 1:
                continue
            target = room_of(names[1:])
            allowed = {"ground", room} | ROOMS.get(room, set())
            if target not in allowed and not (target is None and names[1] == "__version__"):
                wrong.append(f"{'/'.join(parts)}.py imports {module}")
    assert not wrong, wrong


def test_rooms_do_without_what_is_not_their_business():
    wrong = []
    for file, parts in files():
        if parts == ("private_api",):  # holds what it touches of others, and imports it where it is used
            continue
        for module in imports(file):
            for package in FOREIGN.get(room_of(parts), ()):
                if module == package or module.startswith(package + "."):
                    wrong.append(f"{'/'.join(parts)}.py imports {module}")
    assert not wrong, wrong


def test_no_two_files_have_one_name():
    counts = Counter(file.name for file, _ in files())
    assert [name for name, count in counts.items() if count > 1] == ["__init__.py"]


@pytest.mark.parametrize("name", ["files", "private_api", "errors", "limits", "excerpts", "processes", "cores"])
def test_the_lowest_files_import_nothing_of_ours(name):
    processes = {f"ulmfit.processes{name}" for name in ("", ".host_mark", ".process_alive")}
    allowed = {
        "limits": {"ulmfit.errors", "ulmfit.errors.UserError"},
        "excerpts": {"ulmfit.errors", "ulmfit.errors.one_line", "ulmfit.errors.without_keys"},
        "files": processes,
    }.get(name, set())
    assert {module for module in imports(ROOT / f"{name}.py") if module.split(".")[0] == "ulmfit"} <= allowed
