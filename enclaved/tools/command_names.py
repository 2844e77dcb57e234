"""Which commands a shell script runs by name, as far as that can be read off its text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_NEXT_IS_COMMAND: Final = frozenset({"!", "{", "do", "elif", "else", "if", "then", "time", "until", "while"})
_ENDS: Final = frozenset({"}", "done", "fi"})
_PREFIXES: Final = frozenset({"builtin", "command", "exec"})
"""They run the command that their next word names."""
_UNREADABLE: Final = frozenset({"((", ".", "[[", "case", "coproc", "eval", "function", "select", "source"})

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_NUMBER = re.compile(r"[0-9]+")
_PARAMETER = re.compile(r"\$(?:[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!-]|\{[A-Za-z_][A-Za-z0-9_]*\})")
_CHANGES_NAME: Final = frozenset("$*?[]{}~")
"""What the shell puts something else in the place of, where it stands unquoted."""
_REDIRECTION = re.compile(r"&>>?|<<<|<>|>>|>\||[<>]&?")
_SEPARATOR = re.compile(r"\|\||&&|\|&|;|&|\||\n")
_WORD_END: Final = frozenset(" \t\n;&|<>()")


class Unreadable(ValueError):
    """A script whose commands cannot be read off its text; the text of the error says because of what."""


@dataclass(slots=True)
class _Word:
    text: str = ""
    plain: str = ""
    """What stood in it unquoted: reserved words and assignments count only so."""
    quoted: bool = False
    varies: bool = False
    """Whether the shell makes something else of it."""


@dataclass(slots=True)
class _Scanner:
    text: str
    at: int = 0
    names: list[str] = field(default_factory=list)

    def scan(self) -> tuple[str, ...]:
        expects_command, skips, open_groups, is_prefixed = True, False, 0, False
        loop_words = 0  # of "for NAME in", up to where it may be "for NAME do"
        while self.at < len(self.text):
            here = self.text[self.at]
            if here in " \t" or self.text.startswith("\\\n", self.at):
                self.at += 1 if here in " \t" else 2
            elif here == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif found := _REDIRECTION.match(self.text, self.at):
                self._check_redirection(found)
                skips, self.at = True, found.end()
                if found[0].startswith("&"):  # shells that do not know it end the command here
                    expects_command, is_prefixed = True, False
            elif found := _SEPARATOR.match(self.text, self.at):
                if self.text.startswith(";;", self.at):
                    raise Unreadable("';;'")
                expects_command, skips, is_prefixed, self.at = True, False, False, found.end()
                loop_words = 0
            elif here == "(":
                if not expects_command or skips or is_prefixed or self.text.startswith("((", self.at):
                    raise Unreadable("parentheses that are not around commands")
                open_groups, self.at = open_groups + 1, self.at + 1
            elif here == ")":
                if not open_groups:
                    raise Unreadable("a ')' without '('")
                open_groups, expects_command, skips, self.at = open_groups - 1, True, False, self.at + 1
                loop_words = 0
            else:
                word = self._word()
                if self.text.startswith("(", self.at):
                    raise Unreadable("parentheses that are not around commands")
                if _NUMBER.fullmatch(word.plain) and not word.quoted and self.text.startswith(("<", ">"), self.at):
                    continue  # the number of a descriptor that is redirected
                if skips:
                    skips = False
                elif loop_words:
                    expects_command = loop_words == 2 and word.plain == "do"
                    loop_words = (loop_words + 1) % 3
                elif expects_command:
                    if word.text == "for" and not word.quoted and not is_prefixed:
                        expects_command, loop_words = False, 1
                    else:
                        expects_command, is_prefixed = self._command(word, is_prefixed)
        return tuple(self.names)

    def _command(self, word: _Word, is_prefixed: bool) -> tuple[bool, bool]:
        """Takes up a word where a command is expected; says whether one is expected after it, and by no reserved word.

        ``is_prefixed``: after a word such as ``command``, or an assignment, no word is reserved.
        """
        if not word.quoted and not is_prefixed:
            if word.text in _UNREADABLE:
                raise Unreadable(repr(word.text))
            if word.text in _NEXT_IS_COMMAND or word.text in _ENDS:
                return True, False
        if _ASSIGNMENT.match(word.plain):
            return True, True
        if word.varies:
            raise Unreadable("a command whose name the shell makes up")
        if word.text in _UNREADABLE or word.text.startswith("-"):
            raise Unreadable(repr(word.text[:64]))
        if word.text in _PREFIXES:
            return True, True
        self.names.append(word.text)
        return False, False

    def _check_redirection(self, found: re.Match[str]) -> None:
        if found[0] == "<" and self.text.startswith("<", found.end()):
            raise Unreadable("a here-document")
        if self.text.startswith("(", found.end()):
            raise Unreadable("a process substitution")

    def _word(self) -> _Word:
        word = _Word()
        while self.at < len(self.text) and self.text[self.at] not in _WORD_END:
            here = self.text[self.at]
            if here == "'":
                end = self.text.find("'", self.at + 1)
                if end < 0:
                    raise Unreadable("a quote that is not closed")
                word.text, word.quoted = word.text + self.text[self.at + 1 : end], True
                self.at = end + 1
            elif here == '"':
                self.at += 1
                self._double_quoted(word)
            elif here == "\\":
                if self.at + 1 == len(self.text):
                    raise Unreadable("a backslash at its end")
                if not self.text.startswith("\n", self.at + 1):
                    word.text, word.quoted = word.text + self.text[self.at + 1 : self.at + 2], True
                self.at += 2
            elif here in "$`":
                self._parameter(word)
            else:
                word.varies = word.varies or here in _CHANGES_NAME
                word.text += here
                if not word.quoted:
                    word.plain += here
                self.at += 1
        if word.text in _NEXT_IS_COMMAND | _ENDS:
            word.varies = False  # braces, as reserved words
        return word

    def _double_quoted(self, word: _Word) -> None:
        word.quoted = True
        while self.at < len(self.text):
            here = self.text[self.at]
            if here == '"':
                self.at += 1
                return
            if here in "$`":
                self._parameter(word)
            elif here == "\\" and self.text[self.at + 1 : self.at + 2] in ('"', "$", "`", "\\", "\n"):
                word.text += self.text[self.at + 1].replace("\n", "")
                self.at += 2
            else:
                word.text += here
                self.at += 1
        raise Unreadable("a quote that is not closed")

    def _parameter(self, word: _Word) -> None:
        if found := _PARAMETER.match(self.text, self.at):
            word.text, word.varies, self.at = word.text + found[0], True, found.end()
            return
        after = self.text[self.at + 1 : self.at + 2]
        if self.text[self.at] == "`" or after in ("(", "{", "'", '"', "["):
            raise Unreadable("a substitution")
        word.text, self.at = word.text + "$", self.at + 1


def command_names(script: str) -> tuple[str, ...]:
    """Lists the commands that a script runs by name, in order; redirections, assignments and arguments are no names.

    Raises `Unreadable` for scripts of which that cannot be said: with substitutions, here-documents, functions,
    ``case``, ``eval``, or names that the shell makes up. What the commands themselves run is not looked at.
    """
    return _Scanner(script).scan()


def words(script: str) -> frozenset[str]:
    """Every word that a script could run as a command, by its look: for scripts of which more cannot be said."""
    text = re.sub(r"\\\n|[\\'\"]", "", script)
    return frozenset(re.split(r"[\s;&|<>()`${}=,!]+", text)) - {""}
