"""Numbers people can trust, each beside its floor: agreement, Fréchet distance, nearest images; and figures."""
