"""What arTuRO's one multiplier costs when a model is split: counted on real ranks, calculated for clusters."""
