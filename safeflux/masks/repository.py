"""Mask files laid out as a repository of the Hugging Face Hub: files by base model, a card for each, one for all."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from safeflux.errors import MaskFileError
from safeflux.evidence.signatures import signature_path
from safeflux.masks.card import make_card, row_of
from safeflux.masks.encoding import decode
from safeflux.masks.file import read_bytes
from safeflux.masks.meta import MaskMeta

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def lay_out(files: Sequence[Path], repository: str) -> dict[str, bytes]:
    """Return the files of a repository: path -> bytes. Nothing is written.

    Each mask file, with its signature if it has one and its card, is in the folder of its base model; `README.md` is
    the card that the hub shows.

    Args:
        files: Mask files, of any base models.
        repository: `ORG/NAME`, for the commands in the card.

    Raises:
        MaskFileError: A file is damaged, two have one name and base model, or the repository's name is not `ORG/NAME`.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise MaskFileError(f"repository {repository!r}: expected ORG/NAME")
    found: dict[str, bytes] = {}
    metas: dict[str, MaskMeta] = {}
    for path in files:
        data = read_bytes(path)
        masks, meta = decode(data, str(path))
        place = f"{_folder_of(meta)}/{path.name}"
        if place in found:
            raise MaskFileError(f"{path}: another file would be {place} too; rename one of them")
        metas[place], found[place] = meta, data
        found[f"{place.removesuffix('.safetensors')}.md"] = make_card(masks, meta).encode()
        if signature_path(path).is_file():
            found[str(signature_path(Path(place)))] = signature_path(path).read_bytes()
    found["README.md"] = make_readme(metas, repository).encode()
    return found


def make_readme(metas: Mapping[str, MaskMeta], repository: str) -> str:
    """Return the card of a repository: metadata that the hub reads, the masks with their figures, and how to use them.

    Args:
        metas: Path in the repository -> metadata of the mask file there.
        repository: `ORG/NAME`.
    """
    bases = sorted({meta.base_model for meta in metas.values()})
    licences = sorted({meta.licence for meta in metas.values()})
    head = {
        "license": licences[0].lower() if len(licences) == 1 and not licences[0].startswith("LicenseRef") else "other",
        "library_name": "safeflux",
        # The hub links these; other names, such as a folder's, would lead nowhere.
        "base_model": [base for base in bases if _REPOSITORY.fullmatch(base)],
        "tags": ["safeflux", "flux", "text-to-image", "concept-erasure", *sorted({m.category for m in metas.values()})],
    }
    rows = [row_of(f"[{Path(place).stem}]({place.removesuffix('.safetensors')}.md)", metas[place]) for place in metas]
    return "\n".join(
        [
            "---",
            yaml.safe_dump({key: value for key, value in head.items() if value}, sort_keys=False).rstrip(),
            "---",
            "",
            f"# Masks for {', '.join(bases)}",
            "",
            "Binary masks that switch concepts off in the weights of FLUX models. Each is for the base weights that it "
            "was trained for, and is refused on others.",
            "",
            "| mask | category | base model | found: base model, masked | everything else right: base model, masked |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Name the commit, which cannot move:",
            "",
            "```python",
            f'safeflux.guard(pipe, policy="mine.yaml", store="hf://{repository}@COMMIT")',
            "```",
            "",
        ]
    )


def _folder_of(meta: MaskMeta) -> str:
    return re.sub(r"[^\w.-]+", "--", meta.base_model).strip(".-") or "masks"
