"""Short programs that use the package.

python -m gradderiv.examples.train_gpt     a small GPT, trained with the closed forms and with PyTorch's kernels

Five pieces of work that need more than a gradient of attention, with PyTorch's default kernel, with the closed
forms and with PyTorch's MATH backend; ``python -m gradderiv.examples.`` and

gradient_penalty        the critic of a WGAN-GP: a gradient of a gradient
maml                    a meta-step through an inner step of training
score_jvp               sliced score matching: a gradient of a forward derivative
hessian                 H v and the top eigenvalue: a forward derivative of a gradient
per_sample_gradients    DP-SGD: a gradient for each text, by vmap
"""
