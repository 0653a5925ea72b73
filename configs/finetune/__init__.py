"""Fine-tuning configs, and which of them a kind of task has."""

from configs.finetune import choice, similarity, squad, tagging, topic

OF_KIND = {
    "classification": topic.get_config,
    "similarity": similarity.get_config,
    "choice": choice.get_config,
    "tagging": tagging.get_config,
    "span": squad.get_config,
}
