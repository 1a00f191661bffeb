"""cluster.yaml: what `ray up` reads is valid for the Ray that is installed, and starts what exists.

PyYAML and jsonschema come with Ray.
"""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "cluster.yaml").read_text("utf-8")
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
START = re.compile(r"-m (?P<module>[\w.]+) (?P<rest>.*)")


def starts() -> list[re.Match[str]]:
    """Return the commands that run a Python module, on the head and on workers."""
    commands = [*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]]
    return [found for command in commands if (found := START.search(command))]


def file_of(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def written() -> None:
    """Skip as long as the product has no Ray part at all."""
    if not any((ROOT / "actors").glob("ray*.py")):
        pytest.skip("actors/ray is not written yet")


def test_rays_schema_accepts_the_file() -> None:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text("utf-8"))

    jsonschema.validate(CLUSTER, schema)


def test_ray_up_would_accept_the_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(CLUSTER)  # fills in what a local cluster leaves out
    validate_config(prepared)

    assert prepared["available_node_types"]["local.cluster.node"]["min_workers"] == len(
        CLUSTER["provider"]["worker_ips"]
    )


def test_every_field_is_explained() -> None:
    lines = TEXT.splitlines()
    fields = [number for number, line in enumerate(lines) if re.match(r"\w+:", line)]

    assert [lines[number] for number in fields if not lines[number - 1].startswith("# ")] == []


def test_the_mounted_files_exist() -> None:
    if not (ROOT / "README.md").exists():
        pytest.skip("README.md is not written yet")
    local = [Path(path) for path in CLUSTER["file_mounts"].values() if not path.startswith("~")]

    assert [path for path in local if not (ROOT / path).exists()] == []


def test_ray_starts_before_perdure_and_perdure_on_the_head_only() -> None:
    head, workers = CLUSTER["head_start_ray_commands"], CLUSTER["worker_start_ray_commands"]

    assert ["ray start --head" in command for command in head] == [False, True, False]
    assert [bool(START.search(command)) for command in head] == [False, False, True]
    assert not any(START.search(command) for command in workers)


def test_the_head_starts_a_module_that_exists() -> None:
    written()

    assert [found["module"] for found in starts() if not file_of(found["module"]).exists()] == []


@pytest.mark.slow
def test_the_module_knows_the_command_and_its_options() -> None:
    written()
    (found,) = starts()
    command, *rest = found["rest"].split()
    told = subprocess.run(
        [sys.executable, "-m", found["module"], command, "--help"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )

    assert [option for option in rest if option.startswith("--") and option not in told.stdout] == []
