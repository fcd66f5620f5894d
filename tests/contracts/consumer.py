"""A program that uses vggkit as people do; `mypy --strict` reads it, and nothing runs it."""
