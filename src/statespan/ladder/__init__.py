"""The ladder between the hidden Markov model and the LSTM, as data; its run and its report."""
