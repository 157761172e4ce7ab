"""Other people's layouts of weights, and one loader for everything."""
