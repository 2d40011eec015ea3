"""What a hub holds: repositories, branches, commits, large objects, and the faults it shall have."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Act = Callable[[Any], bool]  # of a request handler; True: it was answered


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    sha: str
    title: str
    files: dict[str, bytes]  # all files, whole
    large: frozenset[str]


@dataclass
class Repo:
    kind: str
    private: bool
    branches: dict[str, list[Commit]]
    pulls: list[str] = field(default_factory=list)

    def head(self, branch: str = "main") -> Commit:
        return self.branches[branch][-1]


@dataclass
class Fault:
    """What happens to requests that fit, `times` times, after the first `skip` of them."""

    pattern: str
    act: Act  # True: it was answered
    times: int
    skip: int = 0

    def meets(self, line: str) -> bool:
        if self.times <= 0 or not re.search(self.pattern, line):
            return False
        self.skip -= 1
        if self.skip >= 0:
            return False
        self.times -= 1
        return True


@dataclass
class Hub:
    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    after: Callable[[str], None] = lambda _line: None  # called when a request is done
    owners: tuple[str, ...] = ("me",)

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.requests)

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repos[repo].head(branch).files

    def fail(self, pattern: str, how: Act, *, times: int = 1, skip: int = 0) -> None:
        self.faults.append(Fault(pattern, how, times, skip))

    def add(self, repo: str, files: dict[str, bytes], *, kind: str = "model") -> Repo:
        """Make a repository by hand."""
        made = Repo(kind, private=True, branches={"main": []})
        self.repos[repo] = made
        self.commit(made, "main", "initial commit", files, ())
        return made

    def commit(
        self, repo: Repo, branch: str, title: str, files: dict[str, bytes], large: tuple[str, ...]
    ) -> Commit:
        count = sum(map(len, repo.branches.values()))
        sha = hashlib.sha1(f"{id(repo)} {count}".encode()).hexdigest()
        repo.branches[branch].append(Commit(sha, title, files, frozenset(large)))
        return repo.branches[branch][-1]
