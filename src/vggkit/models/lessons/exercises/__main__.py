"""Checks the reader's solutions: `python -m vggkit.models.lessons.exercises 3`.

Without a number it lists the exercises and which are solved; the first time it writes the file to edit.
"""

import argparse
import importlib.util
import sys
import textwrap
import traceback
from pathlib import Path
from types import ModuleType
from typing import Final

from vggkit.models.lessons.exercises.checks import CHECKS
from vggkit.models.lessons.exercises.tasks import TASKS, write_start

FILE: Final = Path("vgg_exercises.py")


def main() -> int:
    """Run the command; 0 where what was checked is solved, else 1."""
    parser = argparse.ArgumentParser(prog="python -m vggkit.models.lessons.exercises", description=__doc__)
    parser.add_argument("number", nargs="?", type=int, choices=range(1, len(TASKS) + 1), help="an exercise")
    parser.add_argument("--file", type=Path, default=FILE, help=f"the file with the solutions ({FILE})")
    options = parser.parse_args()
    if not options.file.exists():
        options.file.write_text(write_start(), encoding="utf-8")
        print(f"Wrote {options.file}. Edit it, then check an exercise by its number.\n")
    solutions = load(options.file)
    if solutions is None:
        return 1
    if options.number is not None:
        return 0 if report(options.number, find_problems(solutions, options.number)) else 1
    problems = {number: find_problems(solutions, number) for number in range(1, len(TASKS) + 1)}
    for number, task in enumerate(TASKS, start=1):
        print(f"{number:2} {'solved' if not problems[number] else 'open  '}  {task.title}: {task.function}")
    return 0 if not any(problems.values()) else 1


def load(path: Path) -> ModuleType | None:
    """The reader's file as a module; None, with a message, where Python cannot run it."""
    spec = importlib.util.spec_from_file_location("vgg_exercises", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as problem:  # whatever the reader's code raises
        print(f"{path} cannot be run:\n{explain(problem, path)}")
        return None
    return module


def find_problems(solutions: ModuleType, number: int) -> list[str]:
    """What is wrong with a solution, in words; empty where it is right."""
    task = TASKS[number - 1]
    solution = getattr(solutions, task.function, None)
    if solution is None:
        return [f"{task.function} is not defined"]
    try:
        return list(CHECKS[number - 1](solution))
    except Exception as problem:  # whatever the reader's code raises
        return [explain(problem, Path(str(solutions.__file__)))]


def explain(problem: Exception, path: Path) -> str:
    """The error, and the reader's own line where it arose."""
    lines = [each for each in traceback.extract_tb(problem.__traceback__) if Path(each.filename) == path.absolute()]
    lines = lines or [
        each for each in traceback.extract_tb(problem.__traceback__) if each.filename.endswith(path.name)
    ]
    place = f" (line {lines[-1].lineno}: {lines[-1].line})" if lines else ""
    return f"{type(problem).__name__}: {problem}{place}"


def report(number: int, problems: list[str]) -> bool:
    """Print the result of one exercise."""
    task = TASKS[number - 1]
    print(f"{number}. {task.title}: {task.function}")
    if not problems:
        after = f" Next: exercise {number + 1}." if number < len(TASKS) else " That was the last one."
        print(f"Solved.{after}")
        return True
    print(textwrap.fill(task.text, 100) + "\n")
    for each in problems:
        print(f"- {each}")
    return False


if __name__ == "__main__":
    sys.exit(main())
