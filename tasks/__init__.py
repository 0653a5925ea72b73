"""The kinds of task that a config's `task.kind` can name."""

from tasks import choice, classification, similarity, span, tagging
from tasks.record import Kind

KINDS: dict[str, Kind] = {
    "classification": classification.KIND,
    "similarity": similarity.KIND,
    "choice": choice.KIND,
    "tagging": tagging.KIND,
    "span": span.KIND,
}
