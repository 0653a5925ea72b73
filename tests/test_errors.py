"""What the system refuses: paths without rights, read-only, with a file in their way.

Run as root, children give up the rights that let root write anywhere.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import convert
import errors
import finetune
import train
from errors import UserError

ROOT = Path(__file__).parent.parent
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by PR_CAPBSET_DROP; Linux only.
WITHOUT_RIGHTS = """
import ctypes, os, sys
for right in (1, 2):
    getattr(ctypes.CDLL(None), "prctl", lambda *_: 0)(24, right)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
MAIN = """
import sys
from pathlib import Path
import errors
from data import cache

def main(argv):
    {action}
    return 0

errors.run(main)
"""


def run(script, *arguments, before=(), **environment):
    """The outcome of a script in a process without root's rights."""
    command = [*before, sys.executable, "-c", WITHOUT_RIGHTS, "-c", script]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def told(action, *arguments, **options):
    """What an entry point that does this says; it has ended as the user's mistake."""
    process = run(MAIN.format(action=action), *arguments, **options)
    assert (process.returncode, process.stdout) == (2, ""), process
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    return process.stderr


@pytest.fixture
def shut(tmp_path):
    """A folder that can be read, with a file that cannot."""
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "text.txt").chmod(0)
    tmp_path.chmod(0o555)
    asked = f"import os; print(os.access({str(tmp_path)!r}, os.W_OK))"
    if run(asked).stdout != "False\n":
        pytest.skip("root cannot be without its rights here")
    yield tmp_path
    tmp_path.chmod(0o755)


WRITE_CACHE = "cache.write_whole(cache.cache_folder() / 'tokenizers' / 'x', b'')"


def test_a_path_without_rights_is_named_with_the_flag_that_gave_it(shut):
    text, glob = shut / "text.txt", shut / "*.txt"
    read = f"Path({str(text)!r}).read_text()"
    for flags in (
        [f"--input={text}"],
        ["--input", text],
        [f"--input={glob}"],
        [f"--input=/elsewhere,{text}"],
        ["--workdir=/elsewhere", f"--input={shut}"],
    ):
        message = told(read, *flags)
        assert f"{text}: this process has no right" in message
        assert "name another place with --input (now " in message
    assert "FOREWORD_CACHE for the cache" in told(read)
    message = told("Path(argv[1][10:]).mkdir(parents=True)", f"--workdir={shut}/a/b")
    assert f"error: {shut}/a: this process" in message
    assert f"another place with --workdir (now {shut}/a/b)" in message


def test_a_cache_that_cannot_be_written(shut):
    message = told(WRITE_CACHE, FOREWORD_CACHE=str(shut))
    assert f"another place with FOREWORD_CACHE (now {shut})" in message
    message = told(WRITE_CACHE, FOREWORD_CACHE="", HOME=str(shut))
    assert f"{shut}/.cache: this process has no right" in message
    assert "with FOREWORD_CACHE (now ~/.cache/foreword)" in message


def test_a_user_without_a_home():
    """As of a container that runs under any number."""
    if os.getuid():
        pytest.skip("only root can become a user without a home")
    homeless = "import os; os.environ.pop('HOME'); os.setuid(54321); cache.cache_folder"
    assert "who has none: set FOREWORD_CACHE" in told(
        f"{homeless}()", FOREWORD_CACHE=""
    )


def test_a_file_system_that_can_only_be_read(tmp_path):
    mount = f"mount -t tmpfs -o ro none {tmp_path}"
    before = ("unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh")
    try:
        subprocess.run([*before, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    message = told(WRITE_CACHE, before=before, FOREWORD_CACHE=str(tmp_path))
    assert "the file system can only be read. Make it usable, or name ano" in message


@pytest.mark.parametrize(
    ("action", "culprit", "fault"),
    [
        (
            "Path(argv[1][6:] + '/a/b').mkdir(parents=True)",
            "",
            "a file is in the place",
        ),
        ("Path(argv[1][6:]).mkdir(exist_ok=True)", "", "a file is in the place"),
        ("Path(argv[1][6:] + '/a/b').write_text('')", "", "a file is in the place"),
        ("Path(argv[1][6:]).parent.read_text()", "..", "a folder is in the place"),
        (
            f"Path(argv[1][6:] + {'x' * 300!r}).open()",
            "x" * 300,
            "the name is too long",
        ),
    ],
)
def test_something_else_in_the_place(action, culprit, fault, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    named = tmp_path if culprit == ".." else f"{file}{culprit}"
    message = told(action, f"--out={file}")
    assert message.startswith(f"error: {named}: {fault}")
    assert "--out (now " in message or culprit.startswith("x")


@pytest.mark.parametrize(
    "action",
    [
        "Path('/nowhere/at/all').read_text()",  # we may have looked in the wrong place
        "Path('.').mkdir()",
        "import os; os.kill(1, 0); os.close(999)",
        "raise ValueError('no right')",
    ],
)
def test_what_may_be_our_own_fault_stays_a_traceback(action):
    process = run(MAIN.format(action=action))
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback")


def test_paths_in_the_text_of_orbax_and_of_safetensors():
    text = 'Error opening "zarr": Failed to open "/a/b" [os_error_code=\'{}\' x]'
    fault = errors.system_fault(
        ValueError(text.format(errno.EACCES)), ["x", "--workdir=/a"]
    )
    assert fault.startswith("/a/b: this process has no right")
    assert fault.endswith("another place with --workdir (now /a)")
    full = errors.system_fault(Exception("I/O error: No space (os error 28)"), ["x"])
    assert full.startswith("the disk is full: I/O error: No space")


def test_folders_are_looked_at_before_anything_else(tmp_path):
    """Each has a file above it; with the rights it is the same place in the code."""
    file = tmp_path / "file"
    file.write_text("")
    configs = ROOT / "configs"
    for main, *words in (
        (train.main, f"--config={configs}/gpt_mini.py:tiny", "--workdir={}"),
        (
            finetune.main,
            f"--config={configs}/finetune/topic.py:tiny",
            "--config.data.train=nowhere.tsv",
            "--workdir={}",
        ),
        (convert.main, "import", "--source=nowhere", "--workdir={}"),
        (convert.main, "export", "--workdir=nowhere", "--target={}"),
    ):
        arguments = [word.format(file / "run") for word in words]
        with pytest.raises(UserError, match=f"=.*/run: {file}: a file is in the place"):
            main(["command", *arguments])


def test_a_folder_that_cannot_be_written_is_refused_before_it_is_made(shut):
    action = "errors.check_folder(Path(argv[1]), '--workdir')"
    message = told(action, shut / "a/b")
    assert message == (
        f"error: --workdir={shut}/a/b: {shut}: this process cannot write there. Name "
        "another folder\n"
    )


def test_a_checkpoint_without_rights_is_not_taken_for_a_damaged_one(shut):
    """Nor for none, in whose place another one would be used."""
    shut.chmod(0o755)
    for part in ("best/1/state", "checkpoints/1/state"):
        (shut / part).mkdir(parents=True)
    (shut / "best/1/state/_METADATA").touch(0)
    action = "from training.checkpoints import load_params; load_params(Path(argv[1]))"
    assert "_METADATA: this process has no right" in told(action, shut)
    (shut / "best").chmod(0)
    assert "best: this process has no right" in told(action, shut)
    (shut / "best").chmod(0o755)
