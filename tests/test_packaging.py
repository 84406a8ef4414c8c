"""What ships beside the package: scripts, pinned versions, project files."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ulmfit

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "tests" / "run.sh", ROOT / ".ci" / "run"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def project_files() -> list[Path]:
    """The text files that git tracks or would; all of the tree's where git is not there to ask."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        names = [name for name in listing.stdout.split("\0") if name]
    else:
        names = [
            str(path.relative_to(ROOT))
            for folder in ("ulmfit", "launch", "tests", "benchmarks", ".ci")
            for path in (ROOT / folder).rglob("*")
            if "__pycache__" not in path.parts
        ]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def pinned() -> dict[str, str]:
    """Name and version of every line of constraints.txt, which must all be exact."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals and re.fullmatch(r"[0-9][0-9a-z.]*", version), f"not an exact pin: {line}"
            assert canonicalize_name(name) not in pins, f"pinned twice: {line}"
            pins[canonicalize_name(name)] = version
    return pins


def requirements(names: list[str]) -> dict[str, Requirement]:
    """The named requirements and all that the installed distributions require in turn, by canonical name."""
    found: dict[str, Requirement] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in found:
            found[name] = requirement
            required = [Requirement(line) for line in distribution(name).requires or []]
            waiting += [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_and_executable(script):
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in script.read_text()
    assert os.access(script, os.X_OK)
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_version_is_the_packages():
    assert PROJECT["version"] == ulmfit.__version__


def test_constraints_pin_everything_that_is_installed():
    pins = pinned()
    needed = requirements(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    if importlib.util.find_spec("deepspeed") is not None:
        needed |= requirements(PROJECT["optional-dependencies"]["deepspeed"])
    assert set(needed) <= set(pins), f"not pinned: {sorted(set(needed) - set(pins))}"
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line} does not admit {version}"


def test_imports_are_declared_dependencies():
    """Whatever the package and the scripts import is in pyproject.toml, not merely installed by chance."""
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    optional = {
        canonicalize_name(Requirement(line).name)
        for extra in ("deepspeed", "onnx", "sklearn", "sweep")
        for line in PROJECT["optional-dependencies"][extra]
    }
    # torch's wheels for CUDA bring triton, at the version that they need; without it the loss takes another path.
    brought = {"triton"}
    assert brought <= set(pinned())
    owners = packages_distributions()
    # Copied by `export --to transformers` to where transformers is, and not imported here.
    copied = ROOT / "ulmfit" / "model" / "transformers_code.py"
    for path in [*{*(ROOT / "ulmfit").rglob("*.py")} - {copied}, ROOT / "train_lm.py", ROOT / "train_clf.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"ulmfit"}:
                names = {canonicalize_name(name) for name in owners.get(module, [module])}
                assert names & (declared | optional | brought), f"{path.relative_to(ROOT)} imports {module}"


def test_files_name_no_registry_and_no_path_of_a_machine():
    # Spelled in pieces, since this file is among those searched.
    registries = ["py" + "pi.org", "python" + "hosted.org", "deb." + "debian.org", "." + "pytorch.org/whl"]
    index_options = ["--index" + "-url", "--extra-index" + "-url", "--find" + "-links"]
    homes = ["/" + folder + "/" for folder in ("root", "work", "home", "Users")]
    files = project_files()
    assert ROOT / "pyproject.toml" in files or ROOT / "ulmfit" / "__init__.py" in files
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        for bad in registries + index_options:
            assert bad not in text, f"{path.relative_to(ROOT)}: {bad}"
        for home in homes:
            # Preceded by nothing of a path: a relative "framework/root/" is no concern.
            found = re.search(rf"(?<![\w./~-]){re.escape(home)}\w", text)
            assert not found, f"{path.relative_to(ROOT)}: {found.group()}"


def test_git_ignores_what_the_scripts_make():
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/.venv/", "/runs/", "__pycache__/", "*.egg-info/"} <= set(lines)


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_the_launch_configs(path):
    from accelerate.commands.config.config_args import ClusterConfig

    assert path.read_text().startswith("# "), "the first line says when to use it"
    config = ClusterConfig.from_yaml_file(path)
    assert config.mixed_precision == "no", "--precision alone decides"
    assert set(yaml.safe_load(path.read_text())) <= set(ClusterConfig.__dataclass_fields__)
    # A config for several processes on the CPU must not say use_cpu: accelerate would start one, silently.
    several = config.num_processes != 1
    assert several == (config.distributed_type.value != "NO")
    assert config.use_cpu == (path.name == "cpu.yaml")
    engine = {"fsdp2": ("FSDP", {}, {"fsdp_version": 2})} | {
        # Without its launcher named, several machines would be started by pdsh.
        f"zero{stage}": ("DEEPSPEED", {"zero_stage": stage, "deepspeed_multinode_launcher": "standard"}, {})
        for stage in (1, 2, 3)
    }
    expected = engine.get(path.stem, ("MULTI_GPU" if several else "NO", {}, {}))
    assert (config.distributed_type.value, config.deepspeed_config, config.fsdp_config) == expected


def setup_tree(folder: Path) -> Path:
    """`folder` with what the set-up reads."""
    (folder / "launch").mkdir(parents=True)
    for file in ("constraints.txt", "pyproject.toml", "launch/setup.sh"):
        (folder / file).write_bytes((ROOT / file).read_bytes())
    return folder


def bare_python(folder: Path, name: str, body: str) -> dict[str, str]:
    """An environment whose only Python is a shell script `name` with this body."""
    script = folder / name
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    for tool in ("bash", "cat", "cksum", "sed", "grep", "dirname", "mkdir", "find"):
        found = subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout.strip()
        (folder / tool).symlink_to(found)
    return {"PATH": str(folder)}


@pytest.mark.parametrize(
    ("name", "body", "cure"),
    [
        # A Python that is new enough but, as on a bare Debian, cannot import ensurepip.
        ("python3.11", 'case "$2" in *ensurepip*) exit 1;; *print*) echo python3.11; esac', "3.11-venv"),
        # One that is too old.
        ("python3", "exit 1", "No Python 3.11 or newer"),
    ],
    ids=["no venv module", "too old"],
)
def test_setup_says_what_is_missing(tmp_path, name, body, cure):
    tree, tools = setup_tree(tmp_path / "a tree"), tmp_path / "bin"
    tools.mkdir()
    done = subprocess.run(
        ["bash", tree / "launch" / "setup.sh"],
        env=bare_python(tools, name, body),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert cure in done.stderr and done.stderr.count("\n") == 1
    assert not (tree / ".venv").exists()


@pytest.mark.parametrize("linked", [True, False])
def test_setup_deletes_no_environment_of_the_user(tmp_path, linked):
    """.venv may be a link to the environment of another project, or one that another program has made."""
    tree, theirs = setup_tree(tmp_path / "tree"), tmp_path / "tree" / ".venv"
    if linked:
        theirs = tmp_path / "shared"
        (tree / ".venv").symlink_to(theirs)
    theirs.mkdir()
    (theirs / "pyvenv.cfg").write_text("home = /usr/bin")
    done = subprocess.run(["bash", tree / "launch" / "setup.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert ("is a link to" if linked else "was not made by this script") in done.stderr
    assert (theirs / "pyvenv.cfg").exists()


def test_setup_makes_an_interrupted_environment_anew(tmp_path):
    tree, tools = setup_tree(tmp_path / "tree"), tmp_path / "bin"
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "ulmfit-setup").touch()
    (tree / ".venv" / "bin" / "python").touch()
    tools.mkdir()
    # A Python that makes no environment, as one that is interrupted here.
    environment = bare_python(tools, "python3.11", 'case "$*" in *"-m venv"*) exit 130;; esac')
    done = subprocess.run(
        ["bash", tree / "launch" / "setup.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert [path.name for path in (tree / ".venv").iterdir()] == ["ulmfit-setup"]


@pytest.mark.slow
def test_an_installed_wheel_holds_the_english_model_and_its_licence(tmp_path):
    tree, site = tmp_path / "tree", tmp_path / "site"
    for file in project_files():  # a copy: the build leaves files behind
        copy = tree / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "-w", str(tmp_path), str(tree)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 12 * 2**20
    subprocess.run([*pip, "install", *options, "--target", str(site), str(wheel)], check=True)
    program = "import ulmfit; print(ulmfit.__file__); lm = ulmfit.LanguageModel.from_pretrained('english'); "
    program += "print(lm.generate('The city', max_new_tokens=3, seed=0))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, text = done.stdout.strip().split("\n", 1)
    assert where.startswith(str(site)) and text.startswith("The city")
    folder = site / "ulmfit" / "encoders" / "english"
    assert {path.name for path in folder.iterdir()} >= {"LICENSE", "README.md", "articles.txt.xz"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 9 * 2**20
