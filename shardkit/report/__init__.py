"""Reports: numbers of a dataset, a sample as text, and where tokens come from.

`stats` counts, `view` shows one sample (`stored_tokenizer` decodes it), `data`, `topology` and
`origins` lead from a step of training to source rows and back; `card` is for the hub. Larger ones
are packages: `page` (`shardkit report`), `live` (`shardkit view`), `plan` (`shardkit plan`).
"""

from shardkit.report.data import Mixture
from shardkit.report.origins import Origin, Sighting, find_row, trace_batch
from shardkit.report.stats import Summary, summarize
from shardkit.report.topology import Topology, topology_of_state
from shardkit.report.view import SampleView, find_sample, find_samples, save_images, view_sample

__all__ = [
    "Mixture",
    "Origin",
    "SampleView",
    "Sighting",
    "Summary",
    "Topology",
    "find_row",
    "find_sample",
    "find_samples",
    "save_images",
    "summarize",
    "topology_of_state",
    "trace_batch",
    "view_sample",
]
