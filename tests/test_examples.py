"""The scripts that a user copies from, and the README, run as they stand."""

import gzip
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TRAIN = [sys.executable, str(ROOT / "examples" / "train_digits.py")]
# Few, large steps: the tests pay for start-up, not for training.
QUICK = ["--epochs", "2", "--seeds", "2", "--batch-size", "128"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*TRAIN, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_digits", TRAIN[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def main(script, monkeypatch, tmp_path, capsys):
    """Calls the script's `main` in this process, which saves the imports; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train_digits.py", *arguments])
        assert script.main() == 0
        return capsys.readouterr().out

    return call


def rows(output: str) -> dict[str, list[str]]:
    """Reads the table: arm to the other cells of its row."""
    lines = [line for line in output.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {arm: rest for arm, *rest in cells}


def write_idx(folder: Path, packed: bool) -> None:
    """Writes 8x8 images whose label is the row that is lit."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 50)):
        labels = rng.integers(0, 8, count, dtype=np.uint8)
        images = np.zeros((count, 8, 8), np.uint8)
        images[np.arange(count), labels] = 255
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            data = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def all_arms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all_arms")
    return folder, run(*QUICK, cwd=folder)


def test_the_table_has_every_arm_and_the_curves_are_drawn(all_arms):
    folder, done = all_arms
    assert done.returncode == 0, done.stderr
    assert list(rows(done.stdout)) == ["none", "before", "after", "optax"]
    assert (folder / "out" / "train_digits.png").read_bytes().startswith(b"\x89PNG")


def test_it_learns(all_arms):
    accuracies = {arm: float(cells[1].split()[0]) for arm, cells in rows(all_arms[1].stdout).items()}
    assert min(accuracies.values()) > 30, accuracies  # chance is 10 %, and this is after 20 steps


def test_arms_are_paired(all_arms, main):
    together = rows(all_arms[1].stdout)
    alone = rows(main(*QUICK, "--arms", "none"))
    assert list(alone) == ["none"]
    assert alone["none"][:-1] == together["none"][:-1]  # all but the time
    assert together["before"][2].startswith(("+", "-"))


@pytest.mark.parametrize("packed", [True, False], ids=["gzipped", "plain"])
def test_data_reads_idx_files(packed, main, tmp_path):
    write_idx(tmp_path, packed)
    arguments = ("--data", ".", "--epochs", "8", "--seeds", "1", "--batch-size", "20", "--arms", "before")
    output = main(*arguments, "--optimizer", "sgd")
    assert "200 training and 50 test images" in output
    assert float(rows(output)["before"][1]) > 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "none", "sideways"], "argument --arms: invalid choice: 'sideways'"),
        (["--lr", "0"], "argument --lr: must be positive and finite, got 0"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--batch-size", "5000"], "argument --batch-size: 5000 is more than the 1347 training images"),
        (["--data", "nowhere"], "argument --data: no folder nowhere"),
        (["--data", "."], "argument --data: no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in ."),
        (["--data", "broken"], "is not an IDX file of bytes"),
        (["--out", "taken"], "argument --out: cannot write to taken"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_value_gets_one_clear_line(arguments, message, main, tmp_path, capsys):
    (tmp_path / "taken").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(SystemExit) as stop:
        main(*arguments)
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: train_digits.py")
    assert message in error
    assert stop.value.code == 2


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    arguments = ["--epochs", "2", "--seeds", "100000", "--arms", "none", "--batch-size", "128"]
    # A shell has its background jobs ignore the interrupt, and what they start inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([*TRAIN, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        shown = b""
        while b"seed 2" not in shown:
            shown += (chunk := os.read(process.stderr.fileno(), 4096))
            assert chunk, shown.decode()
        process.send_signal(signal.SIGINT)
        output, errors = (stream.decode() for stream in process.communicate(timeout=60))
    finally:
        process.kill()
    assert "Interrupted: only finished runs are shown." in output
    assert int(rows(output)["none"][0]) >= 2
    assert (tmp_path / "out" / "train_digits.png").exists()
    assert "Traceback" not in errors
    assert process.returncode == 130


@pytest.mark.parametrize("name", ["flax_linen", "flax_nnx", "equinox_loop"])
def test_a_loop_to_copy_learns(name, tmp_path):
    script = ROOT / "examples" / f"{name}.py"
    assert 40 <= len(script.read_text("utf-8").splitlines()) <= 60
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *epochs, last = done.stdout.splitlines()
    losses = [float(re.fullmatch(r"epoch \d+, loss (\d+\.\d+)", line)[1]) for line in epochs]
    assert losses[-1] < losses[0] / 4
    assert float(re.fullmatch(r"test accuracy (\d\.\d+)", last)[1]) > 0.9


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```(?:\n+```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))], ids=lambda p: p.name
)
def test_the_code_of_a_page_runs(page, monkeypatch, capsys):
    """A text block right behind a python block is what that one prints."""
    monkeypatch.setenv("COLUMNS", "80")
    namespace: dict = {}
    for code, printed in BLOCK.findall(page.read_text("utf-8")):
        exec(compile(code, "model.py", "exec", dont_inherit=True), namespace)
        shown = capsys.readouterr().out
        assert not printed or shown == printed


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 650
    links = re.findall(r"\]\((?!https:)([^)#]+)", text)
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(links) > 10
    assert [Path(path).name for path in pictures] == ["which_axis_dark.svg", "which_axis.svg"]
    assert [path for path in [*links, *pictures] if not (ROOT / path).exists()] == []
