"""Tries grammars in a separate process, where compiling can be stopped: no limit of llguidance covers all of it.

    Trials.run ──JSON lines──▶ this file as a program ──fork for each grammar──▶ compiles under limits of CPU and memory

An expression of a few kilobytes can cost minutes and gigabytes before the fuel limit of llguidance applies. A grammar
that passes the trial is then compiled in the calling process, at the same bounded cost. The program imports little, so
that it is small, and it ends at the end of its standard input. It is started in confinement (``prompts.sandbox``).
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

from cachetools import FIFOCache
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

CPU_S = 1.0
"""The CPU limit for compiling one grammar, in seconds. JSON schemas of 50 KB take 0.2."""

MEMORY_BYTES = 48 << 20
"""The memory limit of one compiled grammar, in bytes. JSON schemas of 50 KB take 3 MB."""

WALL_S = 30.0
"""The timeout of a trial in seconds, for a busy machine."""

_LEXER_STATES = 20_000
"""The limit of lexer states, one to two kilobytes each, created during generation."""

_MOST_TOKENIZERS = 4
_NUM_BYTES = 256


class TrialFailed(Exception):
    """The trial failed: the process ended or did not answer. The grammar may be valid."""


def limits() -> LLParserLimits:
    """Return the llguidance limits for all grammars."""
    return LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a model: its ``tokenizer.json``, or None for one token a byte, and its end tokens."""

    file: bytes | None
    size: int
    eos_token_ids: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """The same string for equal vocabularies."""
        return f"{blake2b(self.file or b'', digest_size=16).hexdigest()} {self.size} {self.eos_token_ids}"

    def tokenizer(self) -> LLTokenizer:
        """Return the llguidance tokenizer, which takes a quarter of a second. Raises ValueError if it is damaged."""
        if self.file is None:
            return LLTokenizer(TokenizerWrapper(_Bytes(self.eos_token_ids[0])))
        return LLTokenizer(self.file.decode(), n_vocab=self.size, eos_token=list(self.eos_token_ids))


class _Bytes:
    """The vocabulary of the fake model, with the interface that llguidance needs."""

    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(_NUM_BYTES)), b"</s>")

    def __init__(self, eos: int) -> None:
        self.eos_token_id = eos
        self.special_token_ids = (eos,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


class Trials:
    """Starts the program when needed, and again after it has ended. Thread-safe; one trial at a time.

    ``start`` starts this file as a program, with the arguments of ``Popen`` for its pipes.
    """

    def __init__(self, start: Callable[..., subprocess.Popen[str]]) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def run(self, vocabulary: Vocabulary, source: str) -> int | None:
        """Compile a grammar in the program. Return its memory in bytes, or None if it exceeded a limit.

        The trial does not report errors in the grammar. Raises TrialFailed.
        """
        asked: dict[str, Any] = {"key": vocabulary.key, "source": source}
        with self._lock:
            try:
                answer = self._ask(asked)
                if answer.get("needs_tokenizer"):
                    answer = self._ask(asked | {"vocabulary": _written(vocabulary)})
            except (OSError, ValueError) as error:
                self._end()
                raise TrialFailed(f"the process that tries grammars does not answer: {error}") from error
        return None if answer.get("num_bytes") is None else int(answer["num_bytes"])

    def close(self) -> None:
        """End the program. The next trial starts it again."""
        with self._lock:
            self._end()

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        process = self._started()
        if process.stdin is None or process.stdout is None:
            raise OSError("it has no pipes")
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], WALL_S)[0]:
            raise OSError(f"nothing in {WALL_S:.0f} s")
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._start(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            # Closing the pipe of a program that has ended tries to send the rest, and fails too.
            with suppress(BrokenPipeError), process:
                pass


def _written(vocabulary: Vocabulary) -> list[Any]:
    file = None if vocabulary.file is None else vocabulary.file.decode()
    return [file, vocabulary.size, vocabulary.eos_token_ids]


def _read(written: list[Any]) -> Vocabulary:
    file, size, eos_token_ids = written
    return Vocabulary(None if file is None else file.encode(), size, tuple(eos_token_ids))


def main() -> None:
    """Try the grammars on stdin, one JSON line each, until its end."""
    # Ctrl-C in a terminal reaches every process of the group. The parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tokenizers: FIFOCache[str, LLTokenizer] = FIFOCache(_MOST_TOKENIZERS)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["key"] not in tokenizers and "vocabulary" in asked:
            made = tokenizers[asked["key"]] = _read(asked["vocabulary"]).tokenizer()
            # The first grammar builds data that all grammars of a tokenizer share. It is not counted for any of them.
            LLMatcher(made, LLMatcher.grammar_from_regex("a"), log_level=0).compute_bitmask()
        tokenizer = tokenizers.get(asked["key"])
        answer = {"needs_tokenizer": True} if tokenizer is None else {"num_bytes": _forked(tokenizer, asked["source"])}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _forked(tokenizer: LLTokenizer, source: str) -> int | None:
    """Return the result of ``_compile`` in a forked process, or None if that process was stopped."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(_compile(tokenizer, source)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        num_bytes = told.read()
    os.waitpid(child, 0)
    return int(num_bytes) if num_bytes else None


def _compile(tokenizer: LLTokenizer, source: str) -> int:
    # Only Linux has this file with the process size. Elsewhere only the CPU limit bounds the memory.
    statm = "/proc/self/statm"
    is_linux = os.path.exists(statm)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # If memory runs out, llguidance writes a message there before it aborts.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    if is_linux:
        most = _pages(statm)[0] * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before = _held(statm) if is_linux else 0
    try:
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits())
        matcher.compute_bitmask()
    except UnicodeEncodeError:
        return 0
    return max(0, _held(statm) - before) * resource.getpagesize() if is_linux else 0


def _held(statm: str) -> int:
    """Return the private pages of this process, without pages of files."""
    _, resident, shared, *_ = _pages(statm)
    return resident - shared


def _pages(statm: str) -> list[int]:
    with open(statm) as file:
        return [int(field) for field in file.read().split()]


if __name__ == "__main__":
    main()
