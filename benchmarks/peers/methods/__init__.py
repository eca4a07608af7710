"""The methods by name, in the order of the table."""

from benchmarks.peers.method import Method
from benchmarks.peers.methods import (
    ablation,
    ant,
    detector,
    erase_anything,
    esd,
    fia,
    gem,
    mace,
    masks,
    mce,
    negative_prompt,
    safree,
    sld,
    spm,
    uce,
    word_list,
)

METHODS: dict[str, Method] = {
    "masks": masks.METHOD,
    "MCE": mce.METHOD,
    "FIA": fia.METHOD,
    "ESD": esd.METHOD,
    "CA": ablation.METHOD,
    "UCE": uce.METHOD,
    "MACE": mace.METHOD,
    "ANT": ant.METHOD,
    "SPM": spm.METHOD,
    "EraseAnything": erase_anything.METHOD,
    "GEM": gem.METHOD,
    "SLD": sld.METHOD,
    "negative prompt": negative_prompt.METHOD,
    "SAFREE": safree.METHOD,
    "word list": word_list.METHOD,
    "detector": detector.METHOD,
}
