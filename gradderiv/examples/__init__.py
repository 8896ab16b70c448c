"""Short programs that use the package.

python -m gradderiv.examples.train_gpt     a small GPT, trained with the closed forms and with PyTorch's kernels
"""
