"""The README's commands, run as they stand there against the installed cluster, and what it shows compared with what they print."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from e2e.kit import ROOT, Namespace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Commands of the README that this test does not run, and why.
NOT_HERE = {
    "make demo": "the cluster is made, the fixture `slipway` installs the chart, `trained` trains the models, and the next block does "
    "the rest step by step; the update under load is test_update.py",
    "make test": "it is what runs this test",
}
# The beginning of a command, and what its output must hold (a regular expression); "" where there is nothing to print.
EXPECTED = {
    "export ": "",
    "slipway push ": r"sha256:[0-9a-f]{64}",
    "kubectl apply ": r"modeldeployment\.slipway\.dev/digits (created|configured|unchanged)",
    "kubectl wait ": r"modeldeployment\.slipway\.dev/digits condition met",
    "kubectl get mdep": r"(?m)^digits +True +digits-[0-9a-f]{8} +ONNX +\S+$",
    "slipway status ": r"digits is Ready: revision digits-[0-9a-f]{8} serves with 2 replicas",
    "slipway predict ": r"nine \(class 9\) +\d+\.\d %  revision digits-[0-9a-f]{8}",
    "slipway report ": r"(?m)^\* ONNX Float32 +Passed ",
    "slipway plan ": r"digits",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?m)^```{language}\n(.*?)^```$", README, flags=re.DOTALL)


def commands() -> list[str]:
    """The lines of the blocks marked sh, without their comments."""
    lines = (line.partition("  #")[0].rstrip() for block in blocks("sh") for line in block.splitlines())
    return [line for line in lines if line]


def expectation(command: str) -> str:
    found = [pattern for start, pattern in EXPECTED.items() if command.startswith(start)]
    assert len(found) == 1, f"README has a new command, {command!r}: say in EXPECTED what it prints, or in NOT_HERE why it is not run"
    return found[0]


@pytest.fixture(scope="module")
def trained() -> Path:
    """The models of `make demo`, trained as it trains them; in the cache, as that takes half a minute and always gives the same."""
    inputs = ("examples/digits/train.py", "examples/digits/model.py", "hack/requirements-dev.txt")
    content = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in inputs)).hexdigest()[:12]
    out = Path(os.environ.get("SLIPWAY_CACHE") or "~/.cache/slipway").expanduser() / f"digits-{content}"
    if not out.exists():
        new = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
        subprocess.run([sys.executable, str(ROOT / "examples/digits/train.py"), str(new)], check=True, timeout=600, capture_output=True)
        new.rename(out)
    return out


@pytest.fixture(scope="module")
def clone(shared: Namespace, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clone as its user sees it; its kubeconfig has the test's namespace in the place of `default`."""
    folder = tmp_path_factory.mktemp("clone")
    for entry in ROOT.iterdir():
        if entry.name != "build":
            (folder / entry.name).symlink_to(entry)
    (folder / "build").mkdir()
    for name, target in (("bin", ROOT / "build/bin"), ("digits", trained)):
        (folder / "build" / name).symlink_to(target)
    config = yaml.safe_load(shared.cluster.kubeconfig.read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = shared.name
    (folder / "build/kubeconfig").touch(mode=0o600)
    (folder / "build/kubeconfig").write_text(yaml.safe_dump(config))
    return folder


def run_in_one_shell(lines: list[str], folder: Path) -> list[tuple[str, int, str]]:
    """Run lines one after another in one shell that knows nothing of this test; return each with its exit code and its output."""
    marked = "\n".join(f"{line}\nprintf '\\n::end %s::\\n' $?" for line in lines)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{marked}"], cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    parts = re.split(r"\n::end (\d+)::\n", done.stdout)
    return [(line, int(code), output) for line, output, code in zip(lines, parts[0::2], parts[1::2], strict=False)]


def test_the_commands_do_what_the_readme_says(clone: Path) -> None:
    wanted = [command for command in commands() if command not in NOT_HERE]
    patterns = {command: expectation(command) for command in wanted}
    assert len(wanted) >= len(EXPECTED)
    done = run_in_one_shell(wanted, clone)
    for command, code, output in done:
        print(f"$ {command}\n{output}")
        assert code == 0, f"$ {command}\n{output}"
        assert re.search(patterns[command], output), f"$ {command}\n{output}\nholds no {patterns[command]}"
    assert [command for command, _, _ in done] == wanted
    table = next(output for command, _, output in done if command.startswith("kubectl get mdep"))
    shown = next(line for line in README.splitlines() if line.split()[:2] == ["NAME", "READY"])
    assert shown.split() == table.splitlines()[0].split(), "the README shows other columns than kubectl prints"


@pytest.mark.parametrize("manifest", blocks("yaml"), ids=["the shortest", "a long one"])
def test_the_resources_are_accepted(shared: Namespace, manifest: str) -> None:
    answer = shared.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=manifest.replace("digits}", "readme}"))
    assert "created (server dry run)" in answer


@pytest.mark.parametrize("target", sorted({*re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE)}))
def test_every_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"(?m)^{target}:.* ## ", (ROOT / "Makefile").read_text(encoding="utf-8"))


def test_every_file_of_the_readme_exists() -> None:
    linked = re.findall(r"\]\(([^):]+)\)", README) + re.findall(r"(?m)^\| `([^`]+)`(?: · `([^`]+)`)? \|", README)
    names = [name for found in linked for name in ([found] if isinstance(found, str) else found) if name]
    assert len(names) > 5
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_kubectl_explains_as_the_readme_says(shared: Namespace) -> None:
    (command,) = re.findall(r"`kubectl (explain [^`]+)`", README)
    assert "uri\t<string> -required-" in shared.cluster.kubectl(*command.split())
