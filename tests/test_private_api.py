"""What private_api.py reaches for is there, each by itself; and nothing else reaches for such a thing."""

import ast
import ctypes
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import ulmfit
from ulmfit import private_api

ROOT = Path(ulmfit.__file__).parent
PROJECT = ROOT.parent


@pytest.fixture
def stream(tmp_path):
    """An IterableDataset of ten rows in two files."""
    datasets = pytest.importorskip("datasets")
    for number in range(2):
        lines = [f'{{"text": "row {row}"}}' for row in range(5 * number, 5 * number + 5)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    files = sorted(str(file) for file in tmp_path.glob("*.jsonl"))
    return datasets.load_dataset("json", data_files=files, split="train", streaming=True)


# torch


@pytest.mark.parametrize("training", [True, False])
def test_lstm_is_that_of_torch(training):
    module = torch.nn.LSTM(5, 7, batch_first=True)
    x, h, c = torch.randn(3, 4, 5), torch.randn(1, 3, 7), torch.randn(1, 3, 7)
    with torch.set_grad_enabled(training):
        ours = private_api.lstm(x, (h, c), list(module.parameters()), training=training)
        output, (last_h, last_c) = module(x, (h, c))
    assert all(torch.equal(a, b) for a, b in zip(ours, (output, last_h, last_c), strict=True))


def test_lstm_cell_is_that_of_torch():
    cell = torch.nn.LSTMCell(5, 7)
    x, state = torch.randn(3, 5), (torch.randn(3, 7), torch.randn(3, 7))
    ours = private_api.lstm_cell(x, state, list(cell.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, cell(x, state), strict=True))


def test_a_step_is_skipped_where_it_should_be():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for skipped in (1.0, 0.0):
        weight.grad = torch.ones(3)
        private_api.skip_step_where(optimizer, torch.tensor(skipped))
        optimizer.step()
        assert torch.equal(weight.detach(), torch.ones(3)) == bool(skipped)


def test_datasets_count_no_downloads(monkeypatch):
    import datasets
    from datasets import load

    asked = []
    monkeypatch.setattr(load, "get_session", lambda: asked.append(1))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    load.increase_load_count("csv")
    assert asked
    private_api.count_no_downloads()
    load.increase_load_count("csv")
    assert len(asked) == 1


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_packed_products():
    x, weight, bias = torch.randn(4, 6), torch.randn(8, 6), torch.randn(8)
    found = private_api.packed_linear(x, private_api.packed_weight(weight), bias)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight, bias))
    small = torch.randint(-127, 128, (8, 6), dtype=torch.int8)
    levels = torch.randint(1, 128, (4, 6), dtype=torch.uint8)
    scale, total = torch.rand(8) + 0.1, torch.ones(4, 8)
    private_api.add_int8_product(
        total,
        levels,
        private_api.packed_int8_weight(small),
        scale,
        torch.zeros(8, dtype=torch.int32),
        x_scale=0.5,
        x_zero=64,
    )
    expected = 1 + (levels.double() - 64) * 0.5 @ (small.double() * scale.double().unsqueeze(1)).t()
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(private_api.unpacked_weight(private_api.packed_weight(weight)), weight)
    assert torch.equal(private_api.unpacked_int8_weight(private_api.packed_int8_weight(small)), small)


def test_torchs_library_can_be_opened():
    assert ctypes.CDLL(private_api.torch_library())


def test_the_process_groups_store_and_its_end(tmp_path):
    import torch.distributed as dist

    assert not dist.is_initialized()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        store = private_api.group_store()
        store.set("key", "value")
        assert store.get("key") == b"value" and not store.check(["other"])
        try:
            private_api.abort_group(torch.device("cpu"))
        except RuntimeError as error:  # a backend that cannot says so
            assert "abort" in str(error)
    finally:
        dist.destroy_process_group()


# accelerate


def test_accelerates_states_are_put_back_and_its_lists_are_emptied():
    accelerate = pytest.importorskip("accelerate")
    found = [dict(state) for state in private_api.shared_states()]
    try:
        accelerator = accelerate.Accelerator(cpu=True)
        assert len(private_api.shared_states()) == 3 and all(private_api.shared_states())
        model = accelerator.prepare_model(torch.nn.Linear(2, 2))
        accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=1.0))
        private_api.forget_prepared(accelerator)
        assert accelerator._models == accelerator._optimizers == []
    finally:
        for state, before in zip(private_api.shared_states(), found, strict=True):
            state.clear()
            state.update(before)


# datasets


def test_the_columns_of_a_stream(stream):
    assert list(private_api.features_of(stream)) == ["text"]
    datasets = pytest.importorskip("datasets")
    assert list(private_api.features_of(datasets.Dataset.from_dict({"a": [1]}))) == ["a"]


def test_the_hubs_file_systems_are_one_object():
    assert private_api.file_systems() is private_api.file_systems()
    assert isinstance(private_api.file_systems(), dict)


def test_the_place_of_a_streams_reader(stream):
    view = stream.select_columns(["text"]).with_format("arrow")
    view.load_state_dict(view.state_dict())
    places = [private_api.stream_state(view).get("shard_idx") for _ in view.iter(1)]
    assert len(places) == 10 and {0, 1} <= set(places)


def test_the_tables_of_a_stream_are_seen(stream):
    seen = []
    private_api.watch_tables(stream, lambda: seen.append(1))
    assert len(list(stream)) == 10 and len(seen) >= 2


def test_a_data_set_in_the_arrow_cache_is_found_again(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert private_api.arrow_cache("someone", "SomeData") == tmp_path / "cache" / "someone___some_data"
    assert private_api.arrow_cache("", "SomeData") == tmp_path / "cache" / "some_data"
    # As `datasets` itself writes an entry, under a name of the hub's form.
    builder = datasets.load_dataset_builder(
        "json", "default", data_files=[str(_rows(tmp_path))], cache_dir=str(tmp_path / "made")
    )
    builder.download_and_prepare()
    entry = private_api.arrow_cache("someone", "SomeData") / "default" / "0.0.0" / "abc"
    entry.parent.mkdir(parents=True)
    made = Path(builder.cache_dir)
    made.rename(entry)
    for file in entry.glob("json-*.arrow"):
        file.rename(entry / file.name.replace("json", "some_data", 1))
    found = private_api.cached_builder("someone", "SomeData", entry).as_dataset()["train"]
    assert found["text"][:] == ["one", "two"]


def _rows(folder):
    file = folder / "rows.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    return file


# deepspeed: tests/distributed/test_engines.py trains with it; here is what says which name has gone.


def test_deepspeeds_compatible_operations():
    pytest.importorskip("deepspeed")
    from deepspeed import ops

    private_api.without_shared_memory_reduction()
    assert ops.__compatible_ops__["deepspeed_shm_comm"] is False and len(ops.__compatible_ops__) > 5


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "stage_1_and_2",
            [
                "_global_grad_norm",
                "single_partition_of_fp32_groups",
                "_hp_optimizer_states_linked",
                "_lazy_init_hp_params_optimizer_state",
            ],
        ),
        ("stage3", ["_global_grad_norm", "fp32_partitioned_groups_flat"]),
    ],
)
def test_deepspeeds_optimizers_have_the_names(module, names):
    pytest.importorskip("deepspeed")
    source = inspect.getsource(__import__(f"deepspeed.runtime.zero.{module}", fromlist=[module]))
    assert [name for name in names if f"self.{name}" not in source and f"def {name}(" not in source] == []


# versions, and who else touches


def requirements():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("package", private_api.VERSIONS)
def test_versions_are_those_that_are_installed_and_bounded(package):
    written = private_api.VERSIONS[package]
    pins = dict(
        line.split("==")
        for line in (PROJECT / "constraints.txt").read_text().splitlines()
        if "==" in line.split("#")[0]
    )
    assert pins[package] == written, f"read private_api.py over with {package} {pins[package]}, then raise VERSIONS"
    for requirement in (found for found in requirements() if found.name == package):
        major, minor = (int(part) for part in written.split(".")[:2])
        assert written in requirement.specifier
        assert f"{major}.{minor + 1}.0" not in requirement.specifier, f"{requirement} has no upper bound"
        assert version(package).split("+")[0] in requirement.specifier


def test_nothing_else_touches_private_names():
    """An attribute with a leading underscore belongs to the file that it stands in, or to private_api.py."""
    allowed = {("os", "_exit")}
    of_named_tuples = {"_replace", "_asdict", "_fields"}
    packages = ("torch", "accelerate", "datasets", "huggingface_hub", "deepspeed")
    internal = ("datasets.packaged_modules", "datasets.naming", "torch.ops.onednn", "torch.ops.mkldnn")
    hits = []
    for file in sorted(ROOT.rglob("*.py")):
        if file.name == "private_api.py":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        own |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value)
        }
        for node in ast.walk(tree):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and _private(node.attr) and not _is_self(node.value):
                if (ast.unparse(node.value), node.attr) in allowed or node.attr in own | of_named_tuples:
                    continue
                hits.append(f"{where} {ast.unparse(node)}")
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(internal):
                hits.append(f"{where} {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
                name = node.args[1]
                if isinstance(name, ast.Constant) and _private(name.value):
                    hits.append(f"{where} {ast.unparse(node)}")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in packages:
                path = [f"{node.module}.{name.name}" for name in node.names]
                if any(_private(part) for one in path for part in one.split(".")) or node.module.startswith(internal):
                    hits.append(f"{where} {path}")
    assert not hits, "\n".join(hits)


def _private(name):
    return name.startswith("_") and not name.startswith("__")


def _is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")
