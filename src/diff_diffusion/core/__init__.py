"""The theory: time maps, processes, posteriors, targets, denoisers. It knows no network, sampler or file."""
