"""The parts of `recipes.finetune_text`: options, data, splits, the record, the report, the plot."""
