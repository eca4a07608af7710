"""The methods by name, in the order of the table."""

from benchmarks.peers.method import Method
from benchmarks.peers.methods import ablation, esd, masks, negative_prompt, sld, spm, uce, word_list

METHODS: dict[str, Method] = {
    "masks": masks.METHOD,
    "ESD": esd.METHOD,
    "CA": ablation.METHOD,
    "UCE": uce.METHOD,
    "SPM": spm.METHOD,
    "SLD": sld.METHOD,
    "negative prompt": negative_prompt.METHOD,
    "word list": word_list.METHOD,
}
