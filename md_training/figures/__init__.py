"""Pictures of trained networks, the paper's Figs. 2 to 4 and the miss-rate curve: `python -m md_training figures`."""
