"""Networks: (x, log_snr, embedded condition) to an output like x. They know no process, target or sampler."""
