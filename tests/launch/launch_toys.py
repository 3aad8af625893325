"""Stand-ins for the tools of a cloud: they write down how they were called and answer from a list."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# Appends the call to calls.jsonl and takes the first answer whose words are all in it. An answer with
# `shell` runs the value of --command=, as ssh would.
STUB = """#!{python}
import json, pathlib, subprocess, sys
here = pathlib.Path({folder!r})
stdin = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
with (here / "calls.jsonl").open("a") as file:
    file.write(json.dumps([{tool!r}, *sys.argv[1:], *([{{"stdin": stdin}}] if stdin else [])]) + "\\n")
answers = json.loads((here / "answers.json").read_text())
for number, answer in enumerate(answers):
    if all(word in [{tool!r}, *sys.argv[1:]] for word in answer["words"]):
        if not answer["always"]:
            del answers[number]
            (here / "answers.json").write_text(json.dumps(answers))
        break
else:
    sys.exit(f"no answer for {tool} {{sys.argv[1:]}}")
sys.stdout.write(answer["stdout"])
sys.stderr.write(answer["stderr"])
sys.stdout.flush()
if answer["shell"]:
    line = next(word for word in sys.argv if word.startswith("--command=")).partition("=")[2]
    sys.exit(subprocess.run(["sh", "-c", line], cwd=answer["shell"]).returncode)
sys.exit(answer["code"])
"""

# What the scripts themselves are made of. Nothing else of this machine is on their PATH.
PARTS = (
    "bash", "sh", "cat", "date", "dirname", "env", "flock", "git", "grep", "gzip", "mkdir", "mktemp", "mv",
    "nohup", "rm", "sed", "setsid", "sleep", "tail", "tar", "test", "touch", "true",
)  # fmt: skip


@dataclasses.dataclass
class Cloud:
    """A folder of stand-ins, and what they have seen."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "bin"

    def add(self, *tools: str) -> None:
        """Puts stand-ins for these tools on the PATH."""
        for tool in tools:
            file = self.path / tool
            file.write_text(STUB.format(python=sys.executable, folder=str(self.folder), tool=tool))
            file.chmod(0o755)

    def answer(self, *words: str, always: bool = False, **reply: Any) -> None:
        """The next call with all of `words` (every one, with `always`) gets stdout, stderr and code."""
        file = self.folder / "answers.json"
        answers = json.loads(file.read_text())
        default = {"stdout": "", "stderr": "", "code": 0, "shell": ""}
        answers.append({"words": list(words), "always": always, **default, **reply})
        file.write_text(json.dumps(answers))

    def calls(self) -> list[list[Any]]:
        """Every call so far: tool, arguments and, where there was some, {"stdin": text}."""
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def unused(self) -> list[Any]:
        """The answers that were never asked for."""
        answers = json.loads((self.folder / "answers.json").read_text())
        return [answer for answer in answers if not answer["always"]]

    def run(
        self, script: Path | str, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs launch/SCRIPT with nothing but the stand-ins on its PATH."""
        file = script if isinstance(script, Path) else ROOT / "launch" / script
        environment = {"HOME": str(self.folder), **environment, "PATH": str(self.path)}
        return subprocess.run(
            [file, *arguments],
            env=environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
