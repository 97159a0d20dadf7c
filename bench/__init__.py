"""What mailgate costs, measured beside its peers: `python -m bench`."""
