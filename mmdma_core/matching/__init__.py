"""A person's own data: the estimator MMDMA, metrics, pictures, model files and the commands of `mmdma`.

Words for people live here; nothing in the rooms below knows of scikit-learn, pandas or the command line.
"""
