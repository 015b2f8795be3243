"""YAML files that are broken, or that would do more than say values."""

from __future__ import annotations

import random


def broken_files(rng: random.Random, valid: str, command: str) -> list[tuple[str, bytes, str, bool]]:
    """Files made from a valid one.

    Args:
        command: A shell command that the malicious ones try to run.

    Returns:
        (what is wrong, content, the key that is hit, whether it must be refused) of each.
    """
    lines = valid.splitlines(keepends=True)
    values = [i for i, line in enumerate(lines) if ":" in line and not line.startswith("#")]
    i = rng.choice(values)
    before, line, after = "".join(lines[:i]), lines[i], "".join(lines[i + 1 :])
    indent = line[: len(line) - len(line.lstrip())]
    key = line.strip().partition(":")[0].lstrip("- ")

    def instead(text: str) -> bytes:
        return f"{before}{indent}{text}\n{after}".encode()

    def added(text: str) -> bytes:
        return f"{valid}\n{text}\n".encode()

    bomb = "\n".join(
        ["a0: &a0 [x,x,x,x,x,x,x,x,x]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    )
    bits = bytes(rng.randrange(256) for _ in range(200))
    made = [
        ("cut off", valid.encode()[: rng.randrange(1, len(valid))], False),
        ("tabs", f"{before}\t{line}{after}".encode(), True),
        (
            "duplicate key",
            f"{before}{line}{line}{after}".encode(),
            False,
        ),
        ("wrong indentation", f"{before} {'   ' * rng.randrange(1, 3)}{line}{after}".encode(), False),
        ("binary", bits, True),
        ("not UTF-8", valid.encode() + b"# \xff\xfe\nx: \xe9\n", True),
        ("UTF-16", valid.encode("utf-16"), True),
        ("NUL", added("x: \0"), True),
        ("control characters", added('x: "\x07"'), True),
        ("open quote", instead(f'{key}: "open'), True),
        ("open bracket", instead(f"{key}: [1, 2"), True),
        ("no colon", instead(f"{key} 3"), True),
        ("list instead of mapping", b"- 1\n- 2\n", True),
        ("text instead of mapping", b"just text\n", True),
        ("number instead of mapping", b"3\n", True),
        ("two documents", added("---\nx: 1"), True),
        ("deep nesting", added("x: " + "[" * 3000 + "]" * 3000), True),
        ("alias bomb", added(bomb), True),
        ("alias", added("x: &x 1\ny: *x"), True),
        ("merge key", added("x: &x {a: 1}\ny: {<<: *x}"), True),
        ("recursive alias", added("x: &x [*x]"), True),
        ("tag: os.system", instead(f"{key}: !!python/object/apply:os.system ['{command}']"), True),
        (
            "tag: eval",
            instead(f"{key}: !!python/object/apply:builtins.eval [\"__import__('os').system('{command}')\"]"),
            True,
        ),
        ("tag: object", instead(f"{key}: !!python/object/new:subprocess.Popen [['sh', '-c', '{command}']]"), True),
        ("tag: name", instead(f"{key}: !!python/name:os.system"), True),
        ("tag: own", instead(f"{key}: !run '{command}'"), True),
        ("tag: bool", instead(f"{key}: !!bool perhaps"), True),
        ("tag: date", instead(f"{key}: !!timestamp never"), True),
        ("no such date", instead(f"{key}: 2020-13-45"), True),
        ("date", instead(f"{key}: 2020-01-01"), True),
        ("very long number", instead(f"{key}: {'9' * 6000}"), True),
        ("very long hexadecimal", instead(f"{key}: 0x{'f' * 6000}"), True),
        ("interpolation: environment", instead(f"{key}: ${{oc.env:HOME}}"), True),
        ("interpolation: escaped", instead(f'{key}: "\\x24{{oc.env:HOME}}"'), True),
        ("interpolation: time", instead(f"{key}: ${{now:%Y}}"), True),
        ("_target_", added("_target_: os.system"), True),
        ("hydra section", added("hydra: {searchpath: [pkg://os], run: {dir: /tmp}}"), True),
        ("defaults: path", added("defaults: [../../../etc/passwd]"), True),
        ("defaults: text", added("defaults: all"), True),
        ("header", b"# @package a b c\n" + valid.encode(), True),
        ("header: elsewhere", b"# @package hydra\n" + valid.replace("# @package _global_\n", "").encode(), True),
        ("key of numbers", added("1: 2"), True),
        ("key of a list", added("? [1, 2]\n: 3"), True),
        ("empty file", b"", False),
        ("too large", valid.encode() + b"# x\n" * 400_000, True),
    ]
    return [(kind, data, key, refused) for kind, data, refused in made]
