"""What an action of `hashfleet releases` is given."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.config import Config
from pipeline.releases.heads import Log
from pipeline.releases.manifest import ManifestError


@dataclass(frozen=True)
class Request:
    """An action on one channel of a store: the words after the verb, and the options."""

    log: Log
    words: tuple[str, ...]
    config: Config
    args: argparse.Namespace

    @property
    def dry_run(self) -> bool:
        return bool(getattr(self.args, "dry_run", False))

    def none(self, verb: str) -> None:
        """Check that no word follows the verb."""
        if self.words:
            raise ValueError(f"{verb} takes nothing more, got {' '.join(self.words)}")

    def digest(self, verb: str) -> str:
        """Return the release that is named, by default the current one."""
        if len(self.words) > 1:
            raise ValueError(f"{verb} takes one release at most, got {' '.join(self.words)}")
        return self.words[0] if self.words else self.current()

    def exactly(self, verb: str, *names: str) -> Sequence[str]:
        """Return the words, which must be as many as there are names."""
        if len(self.words) != len(names):
            raise ValueError(f"{verb} takes {' and '.join(names)}, got {' '.join(self.words) or 'nothing'}")
        return self.words

    def current(self) -> str:
        """Return the current release.

        Raises:
            ManifestError: nothing is published in the channel.
        """
        digest = self.log.current_release()
        if digest is None:
            raise ManifestError(
                f"{self.log.storage.where()}: nothing is published in channel {self.log.channel!r};"
                " a nightly run does that"
            )
        return digest
