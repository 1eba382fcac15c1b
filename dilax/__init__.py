"""dilax: dense prediction with dilated convolutions, in JAX and Flax.

The networks, training and prediction of *Multi-Scale Context Aggregation by Dilated
Convolutions* (Yu & Koltun, ICLR 2016). `__init__.pyi` lists the public names; each
loads its room when it is first used, so that `import dilax` is quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.2.0"
