"""Reading off a script which commands it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclaved.tools.command_names import Unreadable, command_names, words


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("ls -la /tmp", ["ls"]),
        ("a && b || c; d & e | f\ng", ["a", "b", "c", "d", "e", "f", "g"]),
        ("a 'b; c' \"d && e\" f\\;g", ["a"]),
        ("A=1 B='x y' a", ["a"]),
        ("A=1", []),
        ("a > out 2>&1 < in b", ["a"]),
        ("> out a", ["a"]),
        ("2>err a", ["a"]),
        ("a <<< 'b; c'", ["a"]),
        ("# a\nb # c\n d", ["b", "d"]),
        ("if a; then b; elif c; then d; else e; fi; f", ["a", "b", "c", "d", "e", "f"]),
        ("while ! a; do b; done", ["a", "b"]),
        ("for x in a b c; do d $x; done", ["d"]),
        ("for x do d; done", ["d"]),
        ("{ a; b; }; (c; d) && e", ["a", "b", "c", "d", "e"]),
        ("r''m -rf x", ["rm"]),
        ('r\\m; r\\\nm; "rm"; /bin/rm', ["rm", "rm", "rm", "/bin/rm"]),
        ("command rm; exec rm; builtin A=1 rm", ["rm", "rm", "rm"]),
        ("'if' a", ["if"]),
        ('echo $HOME ${HOME} $1 $? "$x" $', ["echo"]),
        ("a &> out b", ["a", "b"]),
        ("", []),
    ],
)
def test_the_commands_of_a_plain_script_are_found(script: str, names: list[str]) -> None:
    assert list(command_names(script)) == names


@pytest.mark.parametrize(
    "script",
    [
        "$(a)",
        "echo `a`",
        'echo "$(a)"',
        "echo ${x:-$(a)}",
        "echo $((1+1))",
        "diff <(a) b",
        "cat <<EOF\na\nEOF",
        "$x",
        "l?",
        "{a,b}",
        "eval a",
        ". ./a",
        "'eval' a",
        "f() { a; }",
        "function f { a; }",
        "case x in x) a;; esac",
        "[[ -e a ]]",
        "((a))",
        "A=(a b)",
        "exec -a x y",
        "time -p a",
        "echo 'a",
        'echo "a',
        "a)",
        "$'\\x72m' a",
    ],
)
def test_a_script_that_hides_its_commands_is_said_to_be_unreadable(script: str) -> None:
    with pytest.raises(Unreadable):
        command_names(script)


def test_every_word_of_an_unreadable_script_counts() -> None:
    assert {"rm", "cat", "EOF", "x"} <= words("cat <<EOF\n$(r\\m x)\nEOF")


PIECES = ["a", "b", "c", " ", "\n", ";", "&&", "|", "||", "'", '"', "\\", ">", "<", "2>", "&", "(", ")", "{ ", "; }"]
PIECES += [
    "if ",
    "; then ",
    "; fi",
    "for ",
    " in ",
    "; do ",
    "; done",
    "do ",
    "x=",
    "$x",
    "#",
    "! ",
    "while ",
    "=",
    "command ",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_bash_runs_no_command_that_was_not_found(script: str, tmp_path: Path) -> None:
    try:
        names = command_names(script)
    except Unreadable:
        return
    if "while" in script or "for" in script.replace("for ", "", 1):
        return  # loops could go on; one of `for` ends
    bash = shutil.which("bash")
    assert bash
    seen = tmp_path / "seen"
    seen.unlink(missing_ok=True)
    reporting = 'command_not_found_handle() { printf "%s\\0" "$1" >> "$SEEN"; }\n'
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    environment = {"PATH": os.devnull, "SEEN": str(seen)}
    subprocess.run(
        [bash, "-c", reporting + script],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
    )
    ran = set(seen.read_text().split("\0")) - {""} if seen.exists() else set()
    assert ran <= set(names)
