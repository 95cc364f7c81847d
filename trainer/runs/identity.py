"""What a run folder is of: its `identity.json` tells the study, the texts and the code.

A folder may outlive its study, and a text or a source file may change while nothing trains. Folders
of earlier versions have no such file, and go on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trainer.config.settings import ConfigError

FILE = "identity.json"


@dataclass(frozen=True)
class Identity:
    """What a run is of; None, or no study, where it is of none, or where that is not known."""

    studies: tuple[str, ...] = ()  # uid of its study, then of those that this is a copy of
    data: str | None = None  # fingerprint of its texts and of how they are cut into tokens
    code: str | None = None  # sha256 of the source file of a user's own training function

    @classmethod
    def of(cls, text: bytes | None) -> Identity:
        """The identity in the content of an `identity.json`, or in nothing."""
        try:
            kept = json.loads(text or b"{}")
            study, data, code = (kept.get(key) for key in ("study", "data", "code"))
        except (ValueError, AttributeError):
            return cls()
        return cls((study,) if study else (), data, code)

    def to_json(self) -> str:
        """The content of an `identity.json`."""
        study = self.studies[0] if self.studies else None
        return json.dumps({"study": study, "data": self.data, "code": self.code}) + "\n"

    def over(self, kept: Identity) -> Identity:
        """This identity, with what `kept` knows where this one does not."""
        return Identity(
            self.studies or kept.studies, self.data or kept.data, self.code or kept.code
        )

    def check_study(self, kept: Identity, folder: str) -> None:
        """Raise ConfigError if `kept`, of `folder`, is of another study."""
        if kept.studies and self.studies and kept.studies[0] not in self.studies:
            raise ConfigError(
                f"{folder}: is of another study, whose uid is {kept.studies[0]!a}, not "
                f"{self.studies[0]}; give another --runs, or remove that folder"
            )

    def check_content(self, kept: Identity, folder: str) -> None:
        """Raise ConfigError if the checkpoints of `folder`, `kept`, are of other texts or code."""
        if kept.data and self.data and kept.data != self.data:
            raise ConfigError(
                f"{folder}: was trained on another text: its data was {kept.data!a} and is now "
                f"{self.data}; put the old text back, or train on the new one in another folder"
            )
        if kept.code and self.code and kept.code != self.code:
            raise ConfigError(
                f"{folder}: was trained by other code: the source file of its training function "
                "has changed; put the old one back, or go on with the new one by `hpo resume "
                "--changed-code`"
            )


def identity_in(folder: Path) -> Identity:
    """The identity that the run folder on this machine has."""
    path = folder / FILE
    return Identity.of(path.read_bytes() if path.exists() else None)
