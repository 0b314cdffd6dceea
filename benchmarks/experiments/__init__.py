"""What is measured beside the scaling study: the experiments on data of their own."""
