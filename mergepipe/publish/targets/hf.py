"""A model repository on the Hugging Face hub: `hf:org/name`, or `hf:org/name@branch`.

Weights are uploaded before anything is committed that names them. A new repository gets them in
commits of their own, and index, configuration and manifest in the last one; what is there already
changes in one commit. Nothing is noted on this machine: what is missing is what the hub lacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mergepipe.errors import EnvironmentFault, InputError, Problem
from mergepipe.publish.choosing import is_of_a_model
from mergepipe.publish.hub import asked, is_absent, quietly
from mergepipe.publish.item import Item, Parcel, check_unchanged, digest_of_item, git_digest
from mergepipe.publish.target import Options, State, Target

__all__ = ["TARGET"]

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<branch>[^\s@]+))?", re.ASCII)
_MAIN = "main"
_COMMIT_BYTES, _COMMIT_FILES = 20_000_000_000, 50  # of weights in one commit
_LOOKS, _TRIES = 3, 6  # before anything is sent, and after
_UPLOADS = 2  # each is tried again by the client
_TITLE = "Upload a merge by mergepipe"

T = TypeVar("T")


class Repository:
    """A model repository and a branch of it."""

    def __init__(self, repo: str, branch: str, *, public: bool, pr: bool) -> None:
        from huggingface_hub import HfApi

        self.repo, self.branch, self.public, self.pr = repo, branch, public, pr
        self.api = HfApi()
        self.digests: dict[str, str] = {}  # sha256 of what was uploaded, by file
        self.parent: str | None = None  # the commit that was looked at, and that ours follows
        self.removed: tuple[str, ...] = ()
        self.tell: Callable[[str], None] = _unsaid
        self.tries = _LOOKS

    @property
    def shown(self) -> str:
        """Its address, with a branch that is not the main one."""
        branch = "" if self.branch == _MAIN else f"/tree/{self.branch}"
        return f"{self.api.endpoint}/{self.repo}{branch}"

    def look(self, parcel: Parcel) -> State:
        """Give what the branch holds.

        Raises
        ------
        InputError
            if it is a data set's name.
        EnvironmentFault
            if there is no token, or the hub refuses it or cannot be reached.

        """
        from huggingface_hub import get_token

        if get_token() is None:
            fix = "set HF_TOKEN, or `hf auth login`; the token needs the scope `write`"
            raise EnvironmentFault(Problem(self.shown, "no token for the hub", fix))
        with quietly(_unsaid):
            about = self._about()
            if about is None:
                self._check_name()
                visibility = "public" if self.public else "private"
                return State(True, frozenset(), (), (), visibility)
            tip = about if self.branch == _MAIN else self._about(self.branch)
            files = self._files(_MAIN if tip is None else self.branch)
            pending = self._pending(parcel) if self.pr else ()
        visibility = "private" if about.private else "public"
        notes = [f"stays {visibility}: --public is for new ones"] * (self.public and about.private)
        same = frozenset(item.name for item in parcel.items if self._is_same(item, files))
        replaced = tuple(name for name in sorted(files) if name in parcel.names - same)
        removed = tuple(
            name for name in sorted(files) if name not in parcel.names and is_of_a_model(name)
        )
        self.parent, self.removed = (about if tip is None else tip).sha, removed
        if pending:
            return State(False, parcel.names, (), (), visibility, (*notes, *pending))
        if self.pr or tip is None or (tip is not about and tip.sha == about.sha):
            # Of the main branch, or of what it is asked to take over: nothing of it is lost.
            return State(not files, same, (), (), visibility, tuple(notes))
        is_new = not files.keys() - {".gitattributes"}
        return State(is_new, same, replaced, removed, visibility, tuple(notes))

    def send(self, parcel: Parcel, state: State, tell: Callable[[str], None]) -> str:
        """Upload and commit what is missing, and hold what the hub has against what we have."""
        self.tell, self.tries = tell, _TRIES
        with quietly(tell):
            self._check_card(parcel)
            self._make()
            at_once = self.pr or self.branch != _MAIN or bool(state.replaced or state.removed)
            missing = [item for item in parcel.items if item.name not in state.same]
            ready: dict[str, Any] = {}
            for number, item in enumerate(missing, 1):
                ready[item.name] = self._upload(item)
                if item.is_weights:
                    tell(f"{item.name}: uploaded, {number} of {len(missing)}")
                if not at_once and item.is_weights and _is_full(ready, missing[number:]):
                    self._commit(parcel, ready, ())
                    ready = {}
            url = self._commit(parcel, ready, self.removed)
            if not self.pr:
                self._check(parcel)
        return url

    def _asked(self, call: Callable[[], T]) -> T:
        return asked(self.shown, call, self.tell, tries=self.tries)

    def _about(self, branch: str | None = None) -> Any:
        """Give what the hub says of the repository or a branch of it; None if there is none."""
        return self._asked(lambda: self._info("model", branch))

    def _info(self, kind: str, branch: str | None = None) -> Any:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return self.api.repo_info(self.repo, repo_type=kind, revision=branch)
        except HfHubHTTPError as error:
            if is_absent(error):
                return None
            raise

    def _check_name(self) -> None:
        if self._asked(lambda: self._info("dataset")) is not None:
            what = f"'{self.repo}' is a data set's name"
            raise InputError(Problem(self.shown, what, "choose another name for the model"))

    def _check_card(self, parcel: Parcel) -> None:
        """Let the hub judge the model card before anything is uploaded."""
        import yaml
        from huggingface_hub import ModelCard

        card = next((item for item in parcel.items if item.name == "README.md"), None)
        if card is None:
            return
        try:
            text = ModelCard(card.path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            what = f"its front matter is not what the hub takes: {error}"
            raise InputError(Problem(str(card.path), what)) from error
        asked(str(card.path), text.validate, self.tell, tries=self.tries)

    def _files(self, revision: str) -> dict[str, Any]:
        """Give the files of a branch by name; none if it is not there."""
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.hf_api import RepoFile

        def listed() -> dict[str, Any]:
            try:
                tree = list(self.api.list_repo_tree(self.repo, recursive=True, revision=revision))
            except HfHubHTTPError as error:
                if is_absent(error):
                    return {}
                raise
            return {one.path: one for one in tree if isinstance(one, RepoFile)}

        return self._asked(listed)

    def _pending(self, parcel: Parcel) -> tuple[str, ...]:
        """Say which pull request has all of it already."""
        for url, revision in self._asked(self._places):
            files = self._files(revision)
            if all(self._is_same(item, files) for item in parcel.items):
                return (f"all of it is in {url}",)
        return ()

    def _make(self) -> None:
        """Make the repository and the branch, if they are not there."""
        private = not self.public
        if self._about() is None:
            self._asked(lambda: self.api.create_repo(self.repo, private=private, exist_ok=True))
        if self.branch != _MAIN and self._about(self.branch) is None:
            self._asked(
                lambda: self.api.create_branch(self.repo, branch=self.branch, exist_ok=True)
            )

    def _upload(self, item: Item) -> Any:
        """Send a file's bytes, if it is a large one, and give what a commit needs of it."""
        from huggingface_hub import CommitOperationAdd

        def send() -> Any:
            content = item.path if item.is_weights else item.path.read_bytes()
            addition = CommitOperationAdd(item.name, content)
            try:
                self.api.preupload_lfs_files(
                    self.repo,
                    [addition],
                    revision=self.branch,
                    create_pr=self.pr,
                    num_threads=1,
                    free_memory=False,
                )
            finally:  # what else went wrong may come of it
                check_unchanged([item])
            self.digests[item.name] = addition.upload_info.sha256.hex()
            return addition

        return asked(f"{self.shown}: {item.name}", send, self.tell, tries=_UPLOADS)

    def _commit(self, parcel: Parcel, ready: dict[str, Any], removed: Sequence[str]) -> str:
        """Commit what was uploaded; a commit that was done though no answer came is found."""
        from huggingface_hub import CommitOperationDelete

        check_unchanged(parcel.items)
        items = [item for item in parcel.items if item.name in ready]

        def commit() -> str:
            info = self.api.create_commit(
                self.repo,
                [*ready.values(), *(CommitOperationDelete(name) for name in removed)],
                commit_message=_TITLE,
                revision=self.branch,
                create_pr=self.pr,
                parent_commit=self.parent,
            )
            self.parent = info.oid
            return str(info.pr_url or self.shown)

        def done() -> str | None:
            for url, revision in self._places():
                files = self._files(revision)
                if all(self._is_same(i, files) for i in items) and not files.keys() & {*removed}:
                    self.parent = None
                    return url
            return None

        return asked(self.shown, commit, self.tell, tries=self.tries, done=done)

    def _places(self) -> list[tuple[str, str]]:
        """Give where a commit of ours may be: the branch, or pull requests by our title."""
        if not self.pr:
            return [(self.shown, self.branch)]
        found = self.api.get_repo_discussions(
            self.repo, discussion_type="pull_request", discussion_status="open"
        )
        return [(one.url, one.git_reference or "") for one in found if one.title == _TITLE]

    def _check(self, parcel: Parcel) -> None:
        """Hold the hub's digests against ours."""
        files = self._files(self.branch)
        wrong = [item.name for item in parcel.items if not self._is_same(item, files)]
        if wrong:
            what, fix = "the hub has other bytes than were sent", "publish again"
            raise EnvironmentFault(*(Problem(f"{self.shown}: {one}", what, fix) for one in wrong))

    def _is_same(self, item: Item, files: dict[str, Any]) -> bool:
        about = files.get(item.name)
        if about is None or about.size != item.size:
            return False
        if about.lfs is None:
            return bool(about.blob_id == git_digest(item))
        ours = self.digests.get(item.name) or digest_of_item(item, "sha256")
        return bool(about.lfs.sha256 == ours)


def _is_full(ready: dict[str, Any], following: Sequence[Item]) -> bool:
    """Tell whether the weights that are uploaded make a commit of their own."""
    size = sum(one.upload_info.size for one in ready.values())
    last = bool(following) and not following[0].is_weights
    return last or size >= _COMMIT_BYTES or len(ready) >= _COMMIT_FILES


def _unsaid(_message: str) -> None:
    """Say nothing: before an upload a fault that passes is nobody's business."""


def _open(address: str, options: Options) -> Repository:
    match = _NAME.fullmatch(address)
    if match is None:
        what = "is no name of a model repository"
        raise InputError(Problem(f"hf:{address}", what, "as in hf:org/name or hf:org/name@branch"))
    branch = match["branch"]
    if branch and options.branch and branch != options.branch:
        what = f"the branch is '{branch}' here and '{options.branch}' by --branch"
        raise InputError(Problem(f"hf:{address}", what, "keep one of them"))
    return Repository(
        match["repo"], branch or options.branch or _MAIN, public=options.public, pr=options.pr
    )


TARGET = Target("hf:org/name@branch", _open, takes=frozenset({"public", "branch", "pr"}))
