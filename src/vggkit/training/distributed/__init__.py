"""Training on several processes; `process_group` starts them together, `gradients` and `split_head` exchange."""
