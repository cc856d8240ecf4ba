"""Numbers people can trust, each beside its floor: agreement, Fréchet distance, nearest training images; and figures."""
